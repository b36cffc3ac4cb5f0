"""Which plugin `--plugin` names, and what a graph and a network say of it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from refusal import naming

from plugins.op import DOMAIN
from plugins.tensorrt import drop_body
from runtime.core.errors import EngineError
from runtime.engine import trt_api as facade
from runtime.engine.trt_build import PluginChoice, has_plugin_layer


class TestPlugin:
    def test_a_choice_is_none_aot_or_a_file(self, tmp_path):
        library = tmp_path / "a.so"
        library.write_bytes(b"abc")
        assert PluginChoice() == PluginChoice("none", None) and PluginChoice().key == "none"
        for backend in ("tensorrt", "tensorrt-rtx"):
            assert PluginChoice.parse("none", backend) == PluginChoice("none")
        assert PluginChoice.parse("aot", "tensorrt") == PluginChoice("aot") and PluginChoice("aot").key == "aot"
        choice = PluginChoice.parse(str(library), "tensorrt")
        assert choice == PluginChoice("library", library)
        sha = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1
        assert choice.key == f"library:{sha}"
        for text in ("aot", str(library)):
            with pytest.raises(EngineError, match=naming("--backend tensorrt", "tensorrt-rtx")):
                PluginChoice.parse(text, "tensorrt-rtx")
        for missing in (tmp_path, tmp_path / "b.so"):
            with pytest.raises(EngineError, match=naming(missing)):
                PluginChoice.parse(str(missing), "tensorrt")

    @pytest.mark.parametrize(
        ("domains", "kept"), [([DOMAIN], []), (["other", DOMAIN, "more"], ["other", "more"]), (["other"], ["other"]), ([], [])]
    )
    def test_only_the_plugin_s_function_loses_its_body(self, domains, kept):
        model = SimpleNamespace(functions=[SimpleNamespace(domain=domain) for domain in domains])
        assert drop_body(model) is (DOMAIN in domains)
        assert [function.domain for function in model.functions] == kept

    @pytest.mark.parametrize(
        ("kinds", "has_one"), [([], False), (["A"], False), (["P"], True), (["A", "P"], True), (["P", "A"], True)]
    )
    def test_a_network_took_the_plugin_where_any_layer_is_one(self, monkeypatch, kinds, has_one):
        monkeypatch.setattr(facade, "load", lambda backend: SimpleNamespace(LayerType=SimpleNamespace(PLUGIN_V3="P")))
        layers = [SimpleNamespace(type=kind) for kind in kinds]
        network = SimpleNamespace(num_layers=len(kinds), get_layer=layers.__getitem__)
        assert has_plugin_layer("tensorrt", network) is has_one
