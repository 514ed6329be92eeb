"""The reference engine: Hugging Face in eager mode with plain hooks, one request at a time.

It is the oracle of the tests and of `vsteer verify`; no run uses it. It is written to be read: the stream
after block L gets m times the direction of layer L, at every position in the span; then the formulas of other
operations change it, wherever they act.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vsteer.engine.support import check_family
from vsteer.engine.table import check_direction
from vsteer.errors import SteeringFault
from vsteer.models.hugging_face import load_config, load_model, load_tokenizer
from vsteer.operations import OPERATIONS
from vsteer.protocol import (
    Engine,
    EngineInfo,
    Request,
    Result,
    Steering,
    Term,
    Vectors,
    expected_steered_tokens,
)

Change = Callable[[torch.Tensor], torch.Tensor]


class ReferenceEngine(Engine):
    def __init__(
        self,
        model: str,
        *,
        revision: str | None = None,
        dtype: str = "float32",
        max_model_len: int | None = None,
        device: str = "cpu",
    ) -> None:
        config = load_config(model, revision)
        check_family(config.architectures or ())
        self.model = load_model(
            model,
            revision,
            device=device,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            attn_implementation="eager",
        ).eval()
        self.tokenizer: Any = load_tokenizer(model, revision)
        self.info = EngineInfo(
            kind="reference",
            dtype=str(self.model.dtype).removeprefix("torch."),
            model_type=config.model_type,
            layers=config.num_hidden_layers,
            hidden_size=config.hidden_size,
            vocab_size=config.vocab_size,
            max_model_len=min(max_model_len or 2**31, config.max_position_embeddings),
        )
        self.steps = 0
        eos = self.model.generation_config.eos_token_id
        self.eos: set[int] = set(eos if isinstance(eos, list) else [eos]) - {None}
        self._vectors: Vectors = {}

    def load(self, vectors: Vectors, steerings: Iterable[Steering]) -> None:
        for steering in steerings:
            for term in steering.acting_terms:
                direction = vectors[term.vector][term.layer]
                check_direction(term.vector, term.layer, direction, self.info.hidden_size)
        self._vectors = vectors

    def run(self, requests: Iterable[Request]) -> Iterator[Result]:
        for request in requests:
            reason = request.invalid_because(self.info.vocab_size, self.info.max_model_len)
            self.steps += 1
            yield Result(request.id, "error", error=reason) if reason else self._generate(request)

    def score(self, request: Request, token_ids: Iterable[int]) -> torch.Tensor:
        """Log-probabilities over the vocabulary before each of `token_ids`, forced after the prompt."""
        return self.score_together([request], token_ids)[0]

    @torch.inference_mode()
    def score_together(self, requests: Sequence[Request], token_ids: Iterable[int]) -> torch.Tensor:
        """The same for requests of one prompt that differ in steering only: [request, token, vocabulary]."""
        forced = list(token_ids)
        (prompt,) = {request.prompt.token_ids for request in requests}
        ids = self._tensor([*prompt, *forced[:-1]]).expand(len(requests), -1)
        with self._hooks(*requests):
            self._seen = 0
            logits = self.model(input_ids=ids, logits_to_keep=len(forced), use_cache=False).logits
        return torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), dim=-1)

    @torch.inference_mode()
    def streams(self, token_ids: Iterable[int], steered_as: Request | None = None) -> NDArray[np.float32]:
        """The residual stream after every decoder block, steered as the request: [layer, token, hidden]."""
        seen: list[torch.Tensor] = []

        def keep(module: Any, inputs: Any, output: Any) -> None:
            seen.append((output[0] if isinstance(output, tuple) else output)[0])

        with self._hooks(*([steered_as] if steered_as else [])):
            self._seen = 0
            # behind the steering hooks, which were registered before
            handles = [block.register_forward_hook(keep) for block in self.model.model.layers]
            try:
                self.model.model(input_ids=self._tensor(list(token_ids)), use_cache=False)
            finally:
                for handle in handles:
                    handle.remove()
        streams: NDArray[np.float32] = torch.stack(seen).float().cpu().numpy()
        return streams

    @torch.inference_mode()
    def _generate(self, request: Request) -> Result:
        generator = torch.Generator().manual_seed(request.seed or 0)
        prompt = request.prompt.token_ids
        tokens: list[int] = []
        logprobs: list[dict[int, float]] = []
        cache: Any = None
        ids = list(prompt)
        reason, text = "length", ""
        with self._hooks(request):
            self._seen = 0
            while len(tokens) < request.max_tokens:
                out = self.model(
                    input_ids=self._tensor(ids), past_key_values=cache, use_cache=True, logits_to_keep=1
                )
                self._seen += len(ids)
                cache = out.past_key_values
                logits = out.logits[0, -1].float()
                chosen = _sample(logits, request, generator)
                distribution = torch.log_softmax(logits, dim=-1)
                asked = dict.fromkeys((chosen, *request.logprob_token_ids))
                logprobs.append({token: float(distribution[token]) for token in asked})
                tokens.append(chosen)
                ids = [chosen]
                text = self.tokenizer.decode(tokens, skip_special_tokens=True)
                cut = min((at for at in map(text.find, request.stop) if at >= 0), default=-1)
                if cut >= 0:
                    reason, text = "stop", text[:cut]
                    break
                if chosen in self.eos and not request.ignore_eos:
                    reason = "stop"
                    break
        steered = 0
        if request.steering and request.steering.acting_terms:
            span = request.prompt.span(request.steering.positions)
            steered = expected_steered_tokens(span, len(prompt), len(tokens))
        return Result(
            request.id,
            "ok",
            token_ids=tuple(tokens),
            text=text,
            finish_reason=reason,
            logprobs=tuple(logprobs),
            prompt_logprobs=self._prompt_logprobs(request),
            prompt_tokens=len(prompt),
            steered_tokens=steered,
            captured=self._captured(request) if request.capture else None,
        )

    def _prompt_logprobs(self, request: Request) -> tuple[float, ...]:
        first, ids = request.prompt_logprobs_from, request.prompt.token_ids
        if first is None:
            return ()
        with self._hooks(request):
            self._seen = 0
            logits = self.model(input_ids=self._tensor(list(ids)), use_cache=False).logits[0]
        distribution = torch.log_softmax(logits.float(), dim=-1)
        return tuple(float(distribution[place - 1, ids[place]]) for place in range(first, len(ids)))

    def _captured(self, request: Request) -> NDArray[np.float32]:
        streams = self.streams(request.prompt.token_ids, request)
        return np.ascontiguousarray(streams[:, list(request.capture)].swapaxes(0, 1))

    @contextlib.contextmanager
    def _hooks(self, *requests: Request) -> Iterator[None]:
        """Add each request's terms behind the decoder blocks, at its span's absolute positions.

        Row i of the batch belongs to request i.
        """
        handles = []
        steerings = [request.steering or Steering(()) for request in requests]
        spans = [
            request.prompt.span(steering.positions)
            for request, steering in zip(requests, steerings, strict=True)
        ]
        for layer in {term.layer for steering in steerings for term in steering.acting_terms}:
            added = np.zeros((len(requests), self.info.hidden_size), np.float32)
            for row, steering in enumerate(steerings):
                for term in steering.acting_terms:
                    if term.layer == layer and term.is_added:
                        if term.vector not in self._vectors:
                            raise SteeringFault(f"vector {term.vector!r} was not given to load()")
                        added[row] += np.float32(term.multiplier) * self._vectors[term.vector][layer]
            hook = self._adder(torch.from_numpy(added), torch.tensor(spans))
            handles.append(self.model.model.layers[layer].register_forward_hook(hook))
        order = list(OPERATIONS)  # what adds comes first
        for row, steering in enumerate(steerings):
            for term in sorted(steering.acting_terms, key=lambda term: order.index(term.operation)):
                handles += self._changes(term, row, torch.tensor(spans[row]))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _adder(self, added: torch.Tensor, spans: torch.Tensor) -> Any:
        def hook(module: Any, inputs: Any, output: Any) -> Any:
            stream = output[0] if isinstance(output, tuple) else output
            positions = torch.arange(self._seen, self._seen + stream.shape[1])
            inside = (positions >= spans[:, :1]) & (positions < spans[:, 1:])
            addition = (inside[:, :, None].float() * added[:, None, :]).to(stream.device)
            # in float32 at least
            wide = torch.promote_types(stream.dtype, torch.float32)
            steered = (stream.to(wide) + addition).to(stream.dtype)
            return (steered, *output[1:]) if isinstance(output, tuple) else steered

        return hook

    def _changes(self, term: Term, row: int, span: torch.Tensor) -> list[Any]:
        """Hooks that apply an operation's formula where it acts, behind those that add."""
        operation = OPERATIONS[term.operation]
        if operation.formula is None:
            return []
        change = self._change(operation.formula, term, row, span)
        handles = []
        for layer in range(self.info.layers) if operation.every_layer else [term.layer]:
            block = self.model.model.layers[layer]
            if "embedding" in operation.places and layer == 0:
                handles.append(
                    block.register_forward_pre_hook(lambda _, inputs: (change(inputs[0]), *inputs[1:]))
                )
            if "attention" in operation.places:
                handles += _behind_attention(block, change)
            if "layer" in operation.places:
                handles.append(block.register_forward_hook(_on_output(change)))
        return handles

    def _change(
        self, formula: Callable[[Any, Any, float], Any], term: Term, row: int, span: torch.Tensor
    ) -> Change:
        """Applies the formula to one row of a stream, at the positions of the span, in float64."""
        vector = self._vectors[term.vector][term.layer].astype(np.float64)
        r = torch.from_numpy(vector).to(self.model.device)
        size = term.multiplier * float(r.norm())
        r = r / (r.norm() or 1.0)

        def change(stream: torch.Tensor) -> torch.Tensor:
            positions = torch.arange(self._seen, self._seen + stream.shape[1])
            inside = ((positions >= span[0]) & (positions < span[1])).to(stream.device)
            changed = stream.clone()
            changed[row, inside] = formula(stream[row, inside].double(), r, size).to(stream.dtype)
            return changed

        return change

    def _tensor(self, ids: list[int]) -> torch.Tensor:
        return torch.tensor([ids], device=self.model.device)


def _on_output(change: Change) -> Any:
    def hook(module: Any, inputs: Any, output: Any) -> Any:
        return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

    return hook


def _behind_attention(block: Any, change: Change) -> list[Any]:
    """Hooks on what a block's attention adds, such that its sum with the block's input is changed."""
    entered: list[torch.Tensor] = []
    # Granite multiplies what its attention gives before it adds it
    times: float = getattr(block, "residual_multiplier", 1.0)

    def keep(module: Any, inputs: Any) -> None:
        entered[:] = [inputs[0]]

    def changed_sum(added: torch.Tensor) -> torch.Tensor:
        stream = entered[0].double() + times * added.double()
        return (added.double() + (change(stream) - stream) / times).to(added.dtype)

    # Gemma and GLM norm what their attention gives before they add it
    if hasattr(block, "post_self_attn_layernorm"):
        adds = block.post_self_attn_layernorm
    elif hasattr(block, "post_feedforward_layernorm"):
        adds = block.post_attention_layernorm
    else:
        adds = block.self_attn
    return [block.register_forward_pre_hook(keep), adds.register_forward_hook(_on_output(changed_sum))]


def _sample(logits: torch.Tensor, request: Request, generator: torch.Generator) -> int:
    if request.temperature == 0:
        return int(logits.argmax())
    probs = torch.softmax(logits / request.temperature, dim=-1).cpu()
    order = probs.argsort(descending=True)
    kept = order[(probs[order].cumsum(0) - probs[order]) < request.top_p]
    return int(kept[torch.multinomial(probs[kept], 1, generator=generator)])
