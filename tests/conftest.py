"""Test session: one thread, deterministic examples, no network."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

# Examples derive from the test's own source, so every run and every machine checks the same ones.
# `pytest --hypothesis-profile=explore` draws new ones.
settings.register_profile(
    "deterministic",
    derandomize=True,
    database=None,
    deadline=None,  # a shared machine may pause for longer than any sensible deadline
    max_examples=50,
    suppress_health_check=[HealthCheck.too_slow],
    print_blob=True,
)
settings.register_profile("explore", max_examples=500, deadline=None, print_blob=True)
settings.load_profile("deterministic")

# The matrices of the tests are small: more threads only add noise and oversubscribe the machine.
torch.set_num_threads(1)


def is_local(address: object) -> bool:
    """Whether a socket address stays on this machine (loopback or a file)."""
    if not isinstance(address, tuple):
        return True
    host = str(address[0])
    if host in ("", "localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@pytest.fixture(autouse=True, scope="session")
def no_network() -> Iterator[None]:
    """Any connection that would leave this machine raises."""

    class LocalSocket(socket.socket):
        def connect(self, address: Any, /) -> None:
            if not is_local(address):
                msg = f"Tests use no network, but this one connects to {address!r}."
                raise RuntimeError(msg)
            super().connect(address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "socket", LocalSocket)
        yield
