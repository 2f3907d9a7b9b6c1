"""Runs transformers' own common tests, unchanged, on the zoo's models, for `test_transformers_suite.py`.

They are imported from a package `transformers_tests`, which is the folder `tests` of transformers' source.
"""

from __future__ import annotations

import unittest

import torch
import transformers_tests.test_configuration_common as configuration
import transformers_tests.test_modeling_common as common
import transformers_tests.test_training_mixin as training

from mixerzoo.tasks.lm import MixerConfig, MixerForCausalLM, MixerModel

PATTERNS = {
    "hgrn2_attention": [{"name": "hgrn2", "expand": 16, "short_conv": 4}, {"name": "attention"}],
    "hgrn1_retnet": ["hgrn1", "retnet"],
    "gla_window": ["gla", {"name": "attention", "window": 3}],
}


class Tester:
    """Gives the mixins a configuration and inputs."""

    batch_size, seq_length, is_training = 13, 7, True
    vocab_size, hidden_size, num_hidden_layers, num_attention_heads = 99, 32, 2, 2
    causal_lm_class = MixerForCausalLM

    def __init__(self, mixer: list) -> None:
        self.mixer = mixer

    def get_config(self) -> MixerConfig:
        return MixerConfig(
            self.mixer,
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            num_key_value_heads=self.num_attention_heads,
            intermediate_size=37,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )

    def prepare_config_and_inputs_for_common(self) -> tuple[MixerConfig, dict[str, torch.Tensor]]:
        ids = common.ids_tensor([self.batch_size, self.seq_length], self.vocab_size)
        return self.get_config(), {"input_ids": ids, "attention_mask": torch.tril(torch.ones_like(ids))}


class Suite(common.ModelTesterMixin, common.GenerationTesterMixin, training.TrainingTesterMixin):
    all_model_classes = (MixerModel, MixerForCausalLM)
    pipeline_model_mapping = {"feature-extraction": MixerModel, "text-generation": MixerForCausalLM}
    test_can_init_all_missing_weights_before_2023 = True
    mixer: list

    def setUp(self) -> None:
        torch.set_num_threads(1)
        # The test of padding on the left asks for attention matrices as well, and does not use them.
        self.has_attentions = self._testMethodName == "test_left_padding_compatibility"
        self.model_tester = Tester(self.mixer)
        self.config_tester = configuration.ConfigTester(self, config_class=MixerConfig, hidden_size=32)

    def test_config(self) -> None:
        self.config_tester.run_common_tests()

    def _check_past_key_values_for_generate(self, batch_size, past_key_values, seq_length, config) -> None:
        """Every architecture says here what its cache looks like."""
        heads, width = config.num_attention_heads, config.hidden_size // config.num_attention_heads
        self.assertEqual(past_key_values.get_seq_length(), seq_length)
        for layer, kind in zip(past_key_values.layers, config.layer_types, strict=True):
            self.assertEqual({tensor.shape[0] for tensor in layer.state}, {batch_size})
            if kind == "full_attention":
                self.assertEqual(layer.keys.shape, (batch_size, heads, seq_length, width))
                self.assertEqual(layer.values.shape, layer.keys.shape)

    def _check_caches_are_equal(self, cache1, cache2) -> None:
        for one, other in zip(cache1.layers, cache2.layers, strict=True):
            torch.testing.assert_close(one.state, other.state)


for _name, _pattern in PATTERNS.items():
    globals()[f"Test_{_name}"] = type(f"Test_{_name}", (Suite, unittest.TestCase), {"mixer": _pattern})
del Suite
