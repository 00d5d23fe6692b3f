"""Settings: read from an environment, refused when they can't be meant."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from warehouse.settings import CHECKOUT, InvalidSettingError, Settings

if TYPE_CHECKING:
    from pathlib import Path


def test_an_empty_environment_gives_the_defaults() -> None:
    """Nothing set means the local stack with its state below the checkout, wherever the command was run."""
    settings = Settings.from_environment({"PATH": "/bin"})
    assert settings == Settings()
    assert settings.root == CHECKOUT / ".sagascope"


def test_a_process_that_is_started_gets_the_same_settings() -> None:
    """environment() is the inverse of from_environment()."""
    settings = Settings(home="/x", bootstrap_servers="a:1,b:2", topic="t", window_seconds=60, checkpoint_interval_ms=1)
    assert Settings.from_environment(settings.environment()) == settings


@pytest.mark.parametrize(
    ("variable", "value", "allowed"),
    [
        ("SAGASCOPE_WINDOW_SECONDS", "ten", "int"),
        ("SAGASCOPE_WINDOW_SECONDS", "0", ">= 1"),
        ("SAGASCOPE_WATERMARK_DELAY_MS", "-1", ">= 0"),
        ("SAGASCOPE_LONGEST_RUN_DAYS", "0", ">= 1"),
        ("SAGASCOPE_LONGEST_RUN_DAYS", "999999999999", "<= 36500"),
        ("SAGASCOPE_SQL_MEMORY", "4", "regex"),
        ("SAGASCOPE_SQL_DISK", "0GiB", "regex"),
        ("SAGASCOPE_TOPIC", "no spaces'", "regex"),
        ("SAGASCOPE_TOPIC", "", "regex"),
    ],
)
def test_a_wrong_value_is_refused_by_name(variable: str, value: str, allowed: str) -> None:
    """The error names the variable, the value it had, and what is allowed."""
    with pytest.raises(InvalidSettingError) as caught:
        Settings.from_environment({variable: value})
    assert variable in str(caught.value)
    assert repr(value) in str(caught.value)
    assert allowed in str(caught.value)


def test_an_unknown_setting_is_refused_with_those_there_are() -> None:
    """A misspelt variable is no silent default."""
    with pytest.raises(InvalidSettingError, match=r"SAGASCOPE_WINDOW is no setting.*SAGASCOPE_WINDOW_SECONDS"):
        Settings.from_environment({"SAGASCOPE_WINDOW": "60"})


def test_all_state_is_below_home(tmp_path: Path) -> None:
    """No path of the settings leads out of `home`; only the jars are the checkout's, wherever `home` is."""
    settings = Settings(home=str(tmp_path))
    for path in (
        settings.catalog_file,
        settings.warehouse_folder,
        settings.checkpoints,
        settings.logs,
        settings.temporary,
    ):
        assert path.is_relative_to(tmp_path)
    assert settings.jars == Settings().jars


@pytest.mark.parametrize("folder", ["my home", "it's", "100%", "größe", "a#b", "a?b", "a:b"])
def test_a_home_that_some_part_would_misread_is_refused(folder: str) -> None:
    """Named with the character and the cure, instead of tables in another folder."""
    with pytest.raises(InvalidSettingError, match=r"SAGASCOPE_HOME=.*/x/.*set SAGASCOPE_HOME to a folder of letters"):
        Settings.from_environment({"SAGASCOPE_HOME": f"/x/{folder}"})


def test_a_window_that_does_not_divide_an_hour_is_refused() -> None:
    """A recompute puts whole hours in place: a window across two of them would be lost, or told twice."""
    with pytest.raises(InvalidSettingError, match=r"SAGASCOPE_WINDOW_SECONDS=7: .*divisor of 3600"):
        Settings.from_environment({"SAGASCOPE_WINDOW_SECONDS": "7"})
    assert Settings.from_environment({"SAGASCOPE_WINDOW_SECONDS": "90"}).window_seconds == 90
