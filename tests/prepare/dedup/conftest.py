"""Tests of deduplication write many small files: they need not outlive the machine."""

import os

import pytest


@pytest.fixture(autouse=True, scope="package")
def _no_fsync() -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield
