from __future__ import annotations

import stat
import tempfile
from pathlib import Path

import pytest

from deadlinemesh.local.folder import clear_dead, private_folder


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def left_behind(where: Path, name: str = "dmesh-dead") -> Path:
    folder = where / name
    folder.mkdir(0o700)
    (folder / "alive").touch()
    (folder / "mesh-token").write_text("secret")
    return folder


def test_a_folder_is_its_owners_and_is_gone_in_the_end(temporary: Path) -> None:
    with private_folder() as folder:
        assert folder.parent == temporary
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert list(temporary.iterdir()) == []


def test_what_a_dead_owner_left_is_cleared_by_the_next(temporary: Path) -> None:
    dead = left_behind(temporary)
    with private_folder() as folder:
        assert not dead.exists()
        assert folder.exists()


def test_a_living_owner_s_folder_is_not_touched_also_within_one_process(temporary: Path) -> None:
    with private_folder() as one, private_folder() as other:
        assert clear_dead() == []
        assert one.exists()
        assert other.exists()


def test_what_is_not_known_to_be_a_dead_owner_s_is_not_touched(temporary: Path) -> None:
    elsewhere = left_behind(temporary, "elsewhere")
    (temporary / "dmesh-link").symlink_to(elsewhere)
    (temporary / "dmesh-bare").mkdir()
    (temporary / "dmesh-file").touch()
    linked = temporary / "dmesh-linked-lock"
    linked.mkdir()
    (linked / "alive").symlink_to(elsewhere / "alive")
    before = sorted(temporary.rglob("*"))
    assert clear_dead() == []
    assert sorted(temporary.rglob("*")) == before


def test_another_user_s_folder_is_not_touched(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = left_behind(temporary)
    owner = folder.stat().st_uid
    monkeypatch.setattr("os.getuid", lambda: owner + 1)
    assert clear_dead() == []
    assert folder.exists()
