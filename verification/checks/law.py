"""P1–P3: the probes themselves, whatever is computed from them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from specbp import generator_for
from specbp.testing import block_laws, laws, outcome
from specbp.testing.outcome import Check, Level
from verification.checks.claims import Claim
from verification.checks.settings import Settings
from verification.subjects import Subject

LAW_N, N, M = 128, 64, 4
# A coordinate's mean, a pair's correlation; a tenth of it for all of them together.
MARGIN = 0.2
SEEDS, CALLS, ITEMS = 12, 3, 4


def sampled(name: str, text: str) -> Callable[[Callable[..., Iterable[Check]]], Claim]:
    """Make a claim of a function that yields checks; it holds for subjects that draw."""

    def decorate(function: Callable[[Subject, Settings], Iterable[Check]]) -> Claim:
        def checks(subject: Subject, settings: Settings) -> Iterable[Check]:
            return () if subject.claims.expectation == "exact" else function(subject, settings)

        return Claim(name, text, checks)

    return decorate


@sampled("P1 law", "the probes have the law that is promised")
def law(subject: Subject, settings: Settings) -> Iterator[Check]:
    generator, level = generator_for("P1", settings.epoch), Level(settings.alpha, MARGIN)
    if subject.law in block_laws.BLOCK_LAWS:
        blocks = draw(subject, LAW_N, M, generator, (settings.law_probes,))
        yield from block_laws.block_law_checks(blocks, subject.law, level)
    else:
        X = draw(subject, LAW_N, settings.law_probes, generator)
        yield from laws.law_checks(X.mT, subject.law, level)


@sampled("P2 duplicates", "no two probes are equal up to sign")
def duplicates(subject: Subject, settings: Settings) -> Iterator[Check]:
    recurrent, drawn = subject.law == "unit_vector", []
    for seed in range(SEEDS):
        generator = generator_for("P2", settings.epoch, seed)
        m = N // 4 if recurrent else M
        calls = [draw(subject, N, m, generator, (ITEMS,)) for _ in range(CALLS)]
        drawn.append(torch.stack(calls))
    axes, blocks = ("seeds", "calls", "items"), torch.stack(drawn)
    if recurrent:
        # One of n vectors returns by chance, a sequence of n/4 of them does not.
        within = laws.duplicate_checks(blocks.flatten(0, 2), alpha=settings.alpha)
        yield from (check for check in within if check.name.endswith("within one block"))
        blocks = blocks.mT.flatten(-2).unsqueeze(-1)
    for check in laws.duplicate_checks(blocks, axes, alpha=settings.alpha):
        claim = check.claim.replace("probes", "blocks") if recurrent else check.claim
        yield replace(check, claim=claim)


@sampled("P3 reproducible", "probes are a function of the generator, and of nothing else")
def reproducible(subject: Subject, settings: Settings) -> Iterator[Check]:
    def one(generator: torch.Generator) -> Tensor:
        return draw(subject, N, M, generator, (ITEMS,))

    yield from laws.reproducibility_checks(one, ("P3", settings.epoch))
    blocks = [draw(subject, N, M, generator_for("P3", settings.epoch, s)) for s in range(SEEDS)]
    different = len({block.contiguous().numpy().tobytes() for block in blocks})
    message = f"{different} different blocks from {SEEDS} seeds"
    text = "seeds do not lead back to blocks drawn before"
    yield outcome.exactly("P3 seeds", text, different == SEEDS, message)


def draw(
    subject: Subject, n: int, m: int, generator: torch.Generator, batch: Sequence[int] = ()
) -> Tensor:
    """Probes of the subject.

    Raises:
        ValueError: If they have not the shape asked for.
    """
    X = subject.draw(n, m, generator=generator, batch_shape=batch)
    if tuple(X.shape) != (*batch, n, m):
        raise ValueError(f"probes have shape {tuple(X.shape)}, required {(*batch, n, m)}.")
    return X


CHECKS = (law, duplicates, reproducible)
