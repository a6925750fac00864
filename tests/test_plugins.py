"""Plugins and models are found; broken plugins are reported and do not affect others."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import pytest

from tests import marks, tone
from vox_serve import CheckpointSpec, ModelSpec, hookimpl, hub
from vox_serve.errors import CheckpointError, UnknownModel
from vox_serve.plugins import GROUP, Plugins, load_plugins

TONE = EntryPoint("tone", "tests.tone", GROUP)


def model(name: str, model_type: str, *hub_ids: str) -> ModelSpec:
    def matches(config: Mapping[str, Any]) -> bool:
        return config.get("model_type") == model_type

    return ModelSpec(name, "", hub_ids, matches, lambda _: ["*.json"], lambda _: None)


def plugin(*models: ModelSpec, checkpoints: tuple[CheckpointSpec, ...] = ()) -> SimpleNamespace:
    """What an entry point loads: an object with hook implementations, like a module."""

    @hookimpl
    def vox_serve_models():
        return models

    @hookimpl
    def vox_serve_checkpoints():
        return checkpoints

    return SimpleNamespace(
        vox_serve_models=vox_serve_models, vox_serve_checkpoints=vox_serve_checkpoints
    )


class Point(EntryPoint):
    """An entry point to a given object, or one that fails to load."""

    def load(self) -> Any:
        loaded = LOADS[self.value]
        if isinstance(loaded, BaseException):
            raise loaded
        return loaded


LOADS: dict[str, Any] = {}


def found(*loads: Any) -> Plugins:
    """Load these plugins, in order; they are named p0, p1, ..."""
    LOADS.clear()
    LOADS.update({f"p{number}": loaded for number, loaded in enumerate(loads)})
    return load_plugins(points=[Point(name, name, GROUP) for name in LOADS])


def test_an_entry_point_is_loaded() -> None:
    plugins = load_plugins(points=[TONE])
    (info,) = plugins.infos
    assert (info.name, info.models, info.checkpoints, info.error) == (
        "tone",
        ("tone",),
        ("tone",),
        None,
    )
    assert not plugins.broken


def test_a_models_name_is_not_a_path(tmp_path: Path) -> None:
    directory = tmp_path / "my-tone"
    directory.mkdir()
    (directory / "config.json").write_text('{"model_type": "tone"}')
    plugins = load_plugins(points=[TONE])
    assert plugins.resolve(str(directory)).name == "my-tone"
    assert plugins.resolve(f"{directory}/.").name == "my-tone"
    assert plugins.resolve("test/tone").name == "test/tone"
    assert plugins.resolve(str(tone.CHECKPOINT)).name == "tone"


def test_installed_plugins_are_found_by_their_group() -> None:
    """Of the installed entry points, only the group `vox_serve` is loaded."""
    from importlib.metadata import entry_points

    names = {point.name for point in entry_points(group="vox_serve")}
    assert {info.name for info in load_plugins().infos} == names


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (ImportError("no such library"), "no such library"),
        (SyntaxError("bad"), "SyntaxError"),
        (SystemExit(3), "SystemExit: 3"),
        (plugin("no spec"), "AttributeError"),
        (plugin(None), "AttributeError"),
    ],
    ids=["import", "syntax", "exit", "string", "none"],
)
def test_a_broken_plugin_is_reported_and_not_fatal(
    broken: Any, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    plugins = found(broken, plugin(model("a", "a")))
    assert [info.name for info in plugins.broken] == ["p0"]
    assert message in plugins.broken[0].error
    assert list(plugins.models) == ["a"]
    assert "plugin p0 cannot be used" in caplog.text


def test_a_model_that_raises_in_matches_does_not_hide_others(tmp_path: Path) -> None:
    def raises(config: Mapping[str, Any]) -> bool:
        raise KeyError("sizes")

    (tmp_path / "config.json").write_text('{"model_type": "b"}')
    careless = attrs.evolve(model("a", "a"), matches=raises)
    plugins = found(plugin(careless, model("b", "b")))
    assert plugins.resolve(str(tmp_path)).spec.name == "b"


def test_a_plugin_that_raises_in_its_hook_is_broken() -> None:
    @hookimpl
    def vox_serve_models():
        raise RuntimeError("a bug in the hook")

    plugins = found(SimpleNamespace(vox_serve_models=vox_serve_models), tone)
    assert "a bug in the hook" in plugins.broken[0].error
    assert plugins.resolve("tone").spec.name == "tone"


def test_a_misspelt_hook_is_reported() -> None:
    @hookimpl
    def vox_serve_model():
        return []

    plugins = found(SimpleNamespace(vox_serve_model=vox_serve_model))
    assert "vox_serve_model" in plugins.broken[0].error


def test_a_hook_with_the_wrong_arguments_is_reported_and_not_fatal() -> None:
    @hookimpl
    def vox_serve_models(options):
        return []

    plugins = found(SimpleNamespace(vox_serve_models=vox_serve_models), plugin(model("a", "a")))
    assert [info.name for info in plugins.broken] == ["p0"]
    assert "options" in plugins.broken[0].error
    assert list(plugins.models) == ["a"]


def test_distributions_may_give_their_entry_points_the_same_name() -> None:
    LOADS.clear()
    LOADS.update({"one": plugin(model("a", "a")), "two": plugin(model("b", "b"))})
    plugins = load_plugins(points=[Point("speech", value, GROUP) for value in LOADS])
    assert plugins.broken == []
    assert list(plugins.models) == ["a", "b"]


def test_a_plugin_that_is_loaded_twice_works_once() -> None:
    """It is installed and also given with --plugins."""
    plugins = load_plugins(["tests.tone"], points=[TONE])
    assert [info.name for info in plugins.broken] == ["tests.tone"]
    assert "'tone'" in plugins.broken[0].error
    assert list(plugins.models) == ["tone"]


def test_a_second_model_of_the_same_name_is_refused() -> None:
    first, second = model("a", "x"), model("a", "y")
    plugins = found(plugin(first), plugin(second, model("b", "z")))
    assert "'a'" in plugins.broken[0].error
    assert plugins.models == {"a": first}, "the other models of a broken plugin are offered"


def test_a_second_alias_of_the_same_name_is_refused() -> None:
    first, second = CheckpointSpec("demo", "org/one", ""), CheckpointSpec("demo", "org/two", "")
    plugins = found(plugin(checkpoints=(first,)), plugin(checkpoints=(second,)))
    assert "'demo'" in plugins.broken[0].error
    assert plugins.checkpoints == {"demo": first}


def test_an_extra_module_that_is_missing_is_reported() -> None:
    plugins = load_plugins(["no.such.module", "tests.tone"], points=[])
    assert [info.name for info in plugins.broken] == ["no.such.module"]
    assert list(plugins.models) == ["tone"]


def directory(path: Path, config: object) -> str:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return str(path)


def test_an_alias_is_resolved() -> None:
    resolved = load_plugins(points=[TONE]).resolve("tone")
    assert resolved.spec.name == "tone"
    assert resolved.checkpoint.alias == "tone"
    assert resolved.directory() == tone.CHECKPOINT


def test_a_directory_is_matched_by_its_config(tmp_path: Path) -> None:
    plugins = found(plugin(model("a", "kind_a")), plugin(model("b", "kind_b")))
    # The directory name and the configuration disagree; only the configuration counts.
    resolved = plugins.resolve(directory(tmp_path / "a", {"model_type": "kind_b"}))
    assert resolved.spec.name == "b"
    assert resolved.checkpoint is None


def test_a_model_is_never_matched_by_a_substring(tmp_path: Path) -> None:
    plugins = load_plugins(points=[TONE])
    for name in ("ton", "tone2", "TONE", "my-tone", "org-tone"):
        with pytest.raises(UnknownModel):
            plugins.resolve(name)
    with pytest.raises(UnknownModel, match="'tones'"):
        plugins.resolve(directory(tmp_path / "tone", {"model_type": "tones"}))


def test_the_directory_of_an_alias_has_the_limits_of_the_alias() -> None:
    """A checkpoint has the same limits under both names."""
    checkpoint = load_plugins(points=[TONE]).resolve(str(tone.CHECKPOINT) + "/").checkpoint
    assert checkpoint is not None
    assert checkpoint.alias == "tone"


def test_a_hub_id_that_a_plugin_names_needs_no_network() -> None:
    resolved = load_plugins(points=[TONE]).resolve("test/tone")
    assert (resolved.spec.name, resolved.source) == ("tone", "test/tone")


def test_another_hub_id_is_matched_by_its_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Path(directory(tmp_path, {"model_type": "tone"})) / "config.json"
    monkeypatch.setattr(hub, "_download_config", lambda repo: str(config))
    assert load_plugins(points=[TONE]).resolve("someone/fine-tuned").spec.name == "tone"


def test_a_folder_of_a_repository_that_a_plugin_names_is_resolved() -> None:
    folder = load_plugins(points=[TONE]).resolve("test/tone/voices/low")
    assert (folder.spec.name, folder.source) == ("tone", "test/tone/voices/low")


def test_a_directory_without_a_config_goes_to_the_plugin_that_recognises_it(tmp_path: Path) -> None:
    holding = attrs.evolve(model("a", "a"), holds=lambda path: (path / "a.yaml").is_file())
    plugins = found(plugin(holding), plugin(model("b", "b")))
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        plugins.resolve(str(tmp_path))
    (tmp_path / "a.yaml").touch()
    assert plugins.resolve(str(tmp_path)).spec.name == "a"


def test_without_a_config_the_listed_files_are_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = attrs.evolve(model("a", "a", "org/a"), files=["*.safetensors"])
    monkeypatch.setattr(hub, "fetch", lambda source, patterns: (source, patterns))
    fetched = found(plugin(spec)).resolve("org/a/low").directory()
    assert fetched == ("org/a/low", ["*.safetensors"])


def test_a_limit_of_the_model_applies_under_every_name(tmp_path: Path) -> None:
    spec = attrs.evolve(model("a", "a", "org/a"), max_characters=90)
    plugins = found(plugin(spec, checkpoints=(CheckpointSpec("x", "org/a", "", 50),)))
    limits = [resolved.checkpoint for resolved in map(plugins.resolve, ("org/a", "x"))]
    assert [limit and limit.max_characters for limit in limits] == [90, 50]


def test_the_error_for_an_unknown_model_lists_the_known_ones() -> None:
    plugins = found(tone, plugin(model("a", "a", "org/a")), ImportError("gone"))
    with pytest.raises(UnknownModel) as caught:
        plugins.resolve("nothing")
    assert str(caught.value) == (
        "unknown model 'nothing': no such alias or directory; "
        "known models: tone, test/tone, org/a (broken plugins: p2)"
    )


def test_without_plugins_no_model_is_known() -> None:
    with pytest.raises(UnknownModel, match="known models: none"):
        load_plugins(points=[]).resolve("demo")


def test_a_directory_that_two_models_claim_is_refused(tmp_path: Path) -> None:
    plugins = found(plugin(model("a", "same")), plugin(model("b", "same")))
    with pytest.raises(UnknownModel, match=r"several plugins claim .*: a, b"):
        plugins.resolve(directory(tmp_path, {"model_type": "same"}))


@pytest.mark.parametrize("config", ["", "{", "[]", "null", '"tone"'])
def test_an_unreadable_config_is_reported(tmp_path: Path, config: str) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_plugins(points=[TONE]).resolve(directory(tmp_path, config))


def test_a_directory_without_a_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        load_plugins(points=[TONE]).resolve(str(tmp_path))


@pytest.mark.parametrize(("version", "advice"), [(0, "the plugin"), (2, "vox-serve-core")])
def test_a_plugin_for_another_interface_version_is_refused(version: int, advice: str) -> None:
    other = attrs.evolve(model("m", "m"), api_version=version)
    (info,) = found(plugin(other)).broken
    assert info.error is not None
    assert f"written for plugin interface {version}" in info.error
    assert info.error.endswith(f"upgrade {advice}")


@pytest.mark.parametrize(
    ("variables", "loaded"),
    [
        ({}, ["p0", "p1", "p2"]),
        ({"VOX_SERVE_PLUGINS": "p2, p0"}, ["p0", "p2"]),
        ({"VOX_SERVE_BLOCK_PLUGINS": "p1"}, ["p0", "p2"]),
        ({"VOX_SERVE_PLUGINS": "p0,p1", "VOX_SERVE_BLOCK_PLUGINS": "p1"}, ["p0"]),
    ],
)
def test_plugins_are_allowed_and_blocked_by_variables(
    variables: dict[str, str], loaded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    plugins = found(*(plugin(model(name, name)) for name in "abc"))
    assert [info.name for info in plugins.infos] == loaded


def test_postprocessors_are_listed_and_have_names_of_their_own() -> None:
    plugins = found(marks, marks)
    assert plugins.infos[0].postprocess == ("mark", "raises", "crashes", "silent")
    assert plugins.infos[1].error is not None
    assert "another plugin offers a postprocess named 'mark'" in plugins.infos[1].error
    assert plugins.postprocessor("mark").begin is marks.mark
