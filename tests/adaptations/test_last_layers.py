"""Last layers: how many, counted from the output."""

from __future__ import annotations

from typing import Any

import pytest
import transformers

import trial
from onsa.adaptations.gradual_unfreeze import GradualUnfreeze
from onsa.adaptations.last_layers import LastLayers
from onsa.models.heads import Head
from onsa.spec.errors import RecipeError


def test_one_block_leaves_what_is_below_it(rows: Any, talks: Any) -> None:
    bert = trial.trained(trial.opened(rows({"kind": "last-layers", "blocks": 1})))
    assert {name.rpartition("layer.1.")[0] for name in bert if "encoder" in name} == {"bert.encoder."}
    assert {name.split(".")[0] for name in bert if "encoder" not in name} == {"bert", "classifier"}
    assert [name for name in bert if "embeddings" in name] == [] and "bert.pooler.dense.weight" in bert
    llama = trial.trained(trial.opened(talks({"kind": "last-layers", "blocks": 1})))
    assert {"model.norm.weight", "lm_head.weight"} == {name for name in llama if ".layers." not in name}
    assert {name.split(".")[2] for name in llama if ".layers." in name} == {"1"}


def test_more_blocks_than_there_are_is_an_error_that_counts_them(rows: Any) -> None:
    with pytest.raises(RecipeError) as caught:
        trial.opened(rows({"kind": "last-layers", "blocks": 3}))
    (problem,) = caught.value.problems
    assert (problem.code, problem.key) == ("blocks-too-many", "adaptation.blocks")
    assert problem.values == {"value": 3, "blocks": 2} and "2" in str(problem)


@pytest.mark.parametrize("adaptation", [LastLayers(), GradualUnfreeze()])
def test_a_network_without_blocks_is_refused(adaptation: Any) -> None:
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])
    with pytest.raises(RecipeError) as caught:
        adaptation.apply(transformers.ResNetForImageClassification(config), Head.ROWS, frozenset(), 6)
    assert [problem.code for problem in caught.value.problems] == ["blocks-missing"]


def test_the_blocks_of_a_vision_model_are_found() -> None:
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64, image_size=16, patch_size=8
    )
    network = LastLayers(blocks=2).apply(transformers.ViTForImageClassification(config), Head.ROWS, frozenset(), 6)
    free = {name for name, p in network.named_parameters() if p.requires_grad}
    assert {name for name in free if ".layers." not in name} == {
        f"{part}.{leaf}" for part in ("vit.layernorm", "classifier") for leaf in ("weight", "bias")
    }
    assert {name.split(".")[2] for name in free if ".layers." in name} == {"1", "2"}
