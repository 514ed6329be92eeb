"""tiny-llama: a Llama with random weights for tests, made from a seed without torch."""

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

CHATML = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

SEED = 20260101
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "dtype": "float32",
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def make(folder: Path) -> None:
    """A Llama of 6 layers and 4 heads with random weights, where every position and layer moves the answer.

    Its top two tokens are seldom close, so that tests of greedy tokens are meaningful.
    """
    from safetensors.numpy import save_file

    vocab_size = write_tokenizer(folder)
    write_json(folder / "config.json", {**CONFIG, "vocab_size": vocab_size})
    write_json(folder / "generation_config.json", {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 0})
    save_file(random_weights(vocab_size), folder / "model.safetensors", metadata={"format": "pt"})


def random_weights(vocab_size: int) -> dict[str, NDArray[np.float32]]:
    random = np.random.Generator(np.random.PCG64(SEED))

    def normal(*shape: int, std: float) -> NDArray[np.float32]:
        return (std * random.standard_normal(shape)).astype(np.float32)

    # 0.1 gives every block an output about as large as its (normalised) input, so that no layer is idle.
    # The output layer's 0.2 gives logits a standard deviation of 2.3. Of the gaps between the top two, nine
    # in ten are above 0.08 and one in a thousand is below 1e-3; float32's noise is near 2e-5.
    hidden, mlp, keys = 128, 352, 64
    weights = {
        "model.embed_tokens.weight": normal(vocab_size, hidden, std=1.0),
        "model.norm.weight": 1 + normal(hidden, std=0.1),
        "lm_head.weight": normal(vocab_size, hidden, std=0.2),
    }
    for layer in range(6):
        block = f"model.layers.{layer}"
        weights |= {
            f"{block}.input_layernorm.weight": 1 + normal(hidden, std=0.1),
            f"{block}.self_attn.q_proj.weight": normal(hidden, hidden, std=0.1),
            f"{block}.self_attn.k_proj.weight": normal(keys, hidden, std=0.1),
            f"{block}.self_attn.v_proj.weight": normal(keys, hidden, std=0.1),
            f"{block}.self_attn.o_proj.weight": normal(hidden, hidden, std=0.1),
            f"{block}.post_attention_layernorm.weight": 1 + normal(hidden, std=0.1),
            f"{block}.mlp.gate_proj.weight": normal(mlp, hidden, std=0.1),
            f"{block}.mlp.up_proj.weight": normal(mlp, hidden, std=0.1),
            f"{block}.mlp.down_proj.weight": normal(hidden, mlp, std=0.1),
        }
    return weights


def write_tokenizer(folder: Path) -> int:
    """Write a byte-level BPE that knows " t", "ta" and "at" beside single bytes; return its size."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    vowels, letters = "aeiouy", "abcdefghijklmnopqrstuvwxyz"
    merges = [("Ġ", letter) for letter in letters]  # Ġ is how byte-level BPE writes a space
    merges += [(a, b) for a in letters for b in letters if (a in vowels) != (b in vowels)]
    pieces = [*SPECIALS, *sorted(pre_tokenizers.ByteLevel.alphabet()), *(a + b for a, b in merges)]
    tokenizer = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIALS])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|endoftext|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "chat_template": CHATML,
        "model_max_length": 2048,
        "clean_up_tokenization_spaces": False,
    }
    write_json(folder / "tokenizer_config.json", settings)
    return len(pieces)


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
