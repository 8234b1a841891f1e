"""What `.ci/release` checks before it builds anything."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from harness import DEADLINE, ROOT

pytestmark = pytest.mark.skipif(
    os.name != "posix" or shutil.which("git") is None or shutil.which("bash") is None, reason="needs bash and git"
)
GIT = ("git", "-c", "user.name=Tester", "-c", "user.email=tester@example.com")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository in which 1.2.3 could be released."""
    for folder in (".ci", "letterapp"):
        (tmp_path / folder).mkdir()
    shutil.copy(ROOT / ".ci" / "release", tmp_path / ".ci")
    (tmp_path / "letterapp" / "_version.py").write_text('"""The version."""\n\n__version__ = "1.2.3"\n')
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## 1.2.3 - 2026-11-27\n\n- New.\n\n## 1.2.2 - 2026-01-01\n")
    git(tmp_path, "init", "-q", "-b", "main")
    commit(tmp_path)
    return tmp_path


def git(checkout: Path, *arguments: str) -> None:
    subprocess.run([*GIT, *arguments], cwd=checkout, check=True, timeout=DEADLINE)


def commit(checkout: Path) -> None:
    git(checkout, "add", ".")
    git(checkout, "commit", "-q", "--allow-empty", "-m", "A change")


def check(checkout: Path, version: str = "1.2.3", **variables: str) -> tuple[int, str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("GITHUB_")}
    done = subprocess.run(
        ["bash", ".ci/release", "--check", version],
        cwd=checkout,
        env={**env, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=DEADLINE,
    )
    return done.returncode, done.stdout.decode().strip()


def test_a_checkout_that_can_be_released(checkout: Path) -> None:
    assert check(checkout) == (0, "version, changelog and checkout are right")


@pytest.mark.parametrize("version", ["1.2", "v1.2.3", "1.2.3rc1", "../../x"])
def test_what_is_not_a_version_is_refused(checkout: Path, version: str) -> None:
    assert check(checkout, version) == (1, f"not released: {version} is not a version such as 1.2.3")


def test_the_version_of_the_package_must_be_that_of_the_release(checkout: Path) -> None:
    assert check(checkout, "1.2.4") == (1, "not released: letterapp/_version.py has another version")


@pytest.mark.parametrize(
    ("changelog", "problem"),
    [
        ("## 1.2.3\n", "CHANGELOG.md has no line '## 1.2.3 - YYYY-MM-DD'"),
        ("## 1.2.3 - unreleased\n", "CHANGELOG.md has no line '## 1.2.3 - YYYY-MM-DD'"),
        ("## 1.3.0 - unreleased\n\n## 1.2.3 - 2026-11-27\n", "1.2.3 is not the first in CHANGELOG.md"),
    ],
)
def test_the_changelog_must_begin_with_the_release_and_its_date(checkout: Path, changelog: str, problem: str) -> None:
    (checkout / "CHANGELOG.md").write_text(changelog)
    commit(checkout)
    assert check(checkout) == (1, f"not released: {problem}")


def test_a_change_that_is_not_committed_is_refused(checkout: Path) -> None:
    (checkout / "new.py").write_text("")
    assert check(checkout) == (1, "not released: the checkout has changes that are not committed")


def test_another_branch_is_refused(checkout: Path) -> None:
    git(checkout, "switch", "-q", "-c", "other")
    assert check(checkout) == (1, "not released: this is not the branch main")


def test_a_version_that_was_released_is_refused(checkout: Path) -> None:
    git(checkout, "tag", "-a", "v1.2.3", "-m", "1.2.3")
    assert check(checkout) == (1, "not released: the tag v1.2.3 exists")


def test_in_the_workflow_the_tag_must_be_that_of_the_version(checkout: Path) -> None:
    git(checkout, "tag", "-a", "v1.2.3", "-m", "1.2.3")
    assert check(checkout, GITHUB_REF_TYPE="tag", GITHUB_REF_NAME="v1.2.3")[0] == 0
    status, said = check(checkout, GITHUB_REF_TYPE="tag", GITHUB_REF_NAME="v1.2.4")
    assert (status, said) == (1, "not released: the tag is v1.2.4, not v1.2.3")
