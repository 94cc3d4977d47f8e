"""The model for AutoModelForCausalLM of transformers.

It computes all positions anew for each token that it generates.
"""

from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from model import GPT, GPTConfig, rotary_angles


class NanoloopConfig(PretrainedConfig):
    """settings: the fields of GPTConfig."""

    model_type = "nanoloop"

    def __init__(self, settings=None, **options):
        self.settings = settings or {"vocab_size": 257}
        self.vocab_size = self.settings["vocab_size"]
        self.num_hidden_layers = self.settings.get("n_layer")
        options["tie_word_embeddings"] = self.settings.get("tie_embeddings", False)
        super().__init__(**options)


class NanoloopForCausalLM(PreTrainedModel, GenerationMixin):
    config_class = NanoloopConfig
    _tied_weights_keys = {"gpt.lm_head.weight": "gpt.wte.weight"}  # where the config ties them

    def __init__(self, config: NanoloopConfig):
        super().__init__(config)
        self.gpt = GPT(GPTConfig(**config.settings))
        self.post_init()

    def _init_weights(self, module):
        """Compute what the file of weights does not hold."""
        if isinstance(module, GPT) and module.config.position == "rope":
            module.cos, module.sin = rotary_angles(module.config)

    def forward(self, input_ids, **unused):
        """Return logits, (B, T, V)."""
        return CausalLMOutput(logits=self.gpt(input_ids))

    def prepare_inputs_for_generation(self, input_ids, **unused):
        return {"input_ids": input_ids[:, -self.gpt.config.block_size :]}
