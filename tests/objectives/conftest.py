"""The runs that all kinds are tried on."""

from conformance.conftest import attempt

__all__ = ["attempt"]
