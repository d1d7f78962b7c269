"""The verification suite of specbp; run it as ``python -m verification`` from a clone."""
