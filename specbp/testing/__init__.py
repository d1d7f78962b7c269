"""The statistical kit: designs, exact moments, tests with stated error rates, for any pytest."""
