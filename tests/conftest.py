"""What all tests share: real images of others where they are at hand, and the programs that serve as oracles."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import settings

# Every day the same examples, so that what is red was made red by a change; in the slow part others each time.
settings.register_profile("every-day", derandomize=True, deadline=None)
settings.register_profile("random", derandomize=False, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "every-day"))

CHECKOUT = Path(__file__).resolve().parent.parent


def images_directory() -> Path | None:
    """Where real images made by others lie: $SQLIMAGE_IMAGES, or ``shared/images`` beside the checkout."""
    place = Path(os.environ.get("SQLIMAGE_IMAGES", CHECKOUT.parent / "shared" / "images"))
    return place if (place / "MANIFEST.tsv").is_file() else None


def pytest_configure(config: pytest.Config) -> None:
    if config.option.markexpr == "slow" and "HYPOTHESIS_PROFILE" not in os.environ:
        settings.load_profile("random")


@pytest.fixture(scope="session", autouse=True)
def programs_on_path() -> None:
    """File system makers live in sbin, which not every user's PATH holds."""
    os.environ["PATH"] += ":/usr/sbin:/sbin"


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What is kept of images elsewhere, and where they come from: not the user's who runs the tests."""
    os.environ["SQLIMAGE_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    os.environ["XDG_STATE_HOME"] = str(tmp_path_factory.mktemp("state"))


def run(*argv: str | Path, **options: object) -> subprocess.CompletedProcess[bytes]:
    """Run a program that must succeed; its output is in the failure message."""
    assert shutil.which(str(argv[0])), f"{argv[0]} is missing: run tests/install-debian-packages.sh"
    done = subprocess.run([str(a) for a in argv], capture_output=True, check=False, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, (argv, done.returncode, done.stdout[-2000:], done.stderr[-2000:])
    return done  # type: ignore[no-any-return]


def pytest_make_parametrize_id(val: object) -> str | None:
    """Bytes are told by their length: whole volumes are no names of tests."""
    return f"{len(val)} bytes" if isinstance(val, bytes | bytearray) and len(val) > 16 else None
