"""Measures how well a language model predicts a text, and how that depends on how much of it the model has seen.

    sliding      every token is predicted from a window of the last `context` tokens, the window moving by `stride`
    growing      every token is predicted from all before it in a long piece: the loss by position
    lengths      the text in pieces of one length, for several: does a model that was trained at T use, or bear, more?

Losses are in nats a token; perplexity is their exponential. Bits per byte relate to the text, so that models with
different tokenizers compare. `score_tasks` hands a model to EleutherAI's lm-evaluation-harness.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mixerzoo.tasks.lm.data.token_files import Tokens, count_bytes
from mixerzoo.tasks.lm.transformers_model.loss import LOGITS_AT_ONCE
from mixerzoo.tasks.lm.transformers_model.modeling import MixerForCausalLM

TOKENS_AT_ONCE = 2**15
BUCKETS_A_DOUBLING = 2  # positions of the loss by position are grouped in steps of sqrt(2)


@torch.no_grad()
def token_losses(model: PreTrainedModel, ids: np.ndarray) -> np.ndarray:
    """Returns nats of ids[:,1:] given all before them in their row: [B,T+1] -> fp64 [B,T].

    The logits are made in parts.
    """
    rows = torch.from_numpy(ids.astype(np.int64)).to(model.device)
    hidden = model.base_model(input_ids=rows[:, :-1], use_cache=False).last_hidden_state.flatten(0, 1)
    head: Any = model.get_output_embeddings()
    parts = max(1, LOGITS_AT_ONCE // model.config.vocab_size)
    losses = [
        F.cross_entropy(head(some).float(), targets, reduction="none")
        for some, targets in zip(hidden.split(parts), rows[:, 1:].flatten().split(parts), strict=True)
    ]
    return torch.cat(losses).view(rows.shape[0], -1).double().cpu().numpy()


def sliding(model: PreTrainedModel, ids: np.ndarray, context: int, stride: int) -> np.ndarray:
    """Returns nats [N-1] of every token but the first, from windows of `context` tokens that begin `stride` apart.

    A token is predicted by the first window that holds it: with at least context - stride before it, but for the first
    ones. With stride = context the windows are apart."""
    if not 1 <= stride <= context:
        raise ValueError(f"the stride must lie between 1 and the context, {context}, got {stride}")
    last = len(ids) - 1
    losses = np.zeros(last)
    starts = np.arange(0, max(1, last - context + stride), stride)
    whole = starts[starts + context <= last]
    for some in np.array_split(whole, max(1, math.ceil(len(whole) * context / TOKENS_AT_ONCE))):
        if len(some) == 0:
            continue
        windows = token_losses(model, ids[some[:, None] + np.arange(context + 1)])
        for start, window in zip(some, windows, strict=True):
            first = 0 if start == 0 else context - stride
            losses[start + first : start + context] = window[first:]
    if len(whole) < len(starts):
        start = int(starts[-1])
        first = 0 if start == 0 else context - stride
        losses[start + first :] = token_losses(model, ids[None, start:])[0, first:]
    return losses


def growing(model: PreTrainedModel, ids: np.ndarray, length: int) -> np.ndarray:
    """Returns nats [pieces,length]: position t of a piece is predicted from the t+1 tokens before it.

    A rest is left out.
    """
    if length < 1:
        raise ValueError(f"a length must be at least 1, got {length}")
    pieces = (len(ids) - 1) // length
    if pieces < 1:
        raise ValueError(f"the text has {len(ids)} tokens, a piece needs {length + 1}; remedy: smaller lengths")
    starts = np.arange(pieces) * length
    batches = np.array_split(starts, math.ceil(pieces * length / max(length, TOKENS_AT_ONCE)))
    return np.concatenate([token_losses(model, ids[some[:, None] + np.arange(length + 1)]) for some in batches])


def by_position(losses: np.ndarray) -> list[dict[str, float]]:
    """Returns the mean loss of positions in groups that grow with them: `first` to `last`, counted from 1."""
    length = losses.shape[1]
    steps = math.ceil(math.log2(length) * BUCKETS_A_DOUBLING) if length > 1 else 0
    edges = sorted({min(length, round(2 ** (step / BUCKETS_A_DOUBLING))) for step in range(steps + 1)} | {length})
    firsts = [1, *(edge + 1 for edge in edges[:-1])]
    return [
        {"first": first, "last": last, "loss": float(losses[:, first - 1 : last].mean())}
        for first, last in zip(firsts, edges, strict=True)
    ]


def evaluate_text(
    model: MixerForCausalLM,
    tokens: Tokens,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    context: int | None = None,
    stride: int | None = None,
    lengths: Sequence[int] = (),
    max_tokens: int | None = None,
) -> dict[str, Any]:
    """Evaluates everything above, as values that JSON can hold.

    Args:
        tokens: the text; of it, at most `max_tokens` count.
        tokenizer: for bits per byte; None where it isn't known.
        context, stride: of the sliding windows; by default the training length, and half of it.
        lengths: of pieces; by default from a quarter of the training length up to eight times that, as far as the text
            goes. The longest one gives the loss by position.

    Raises ValueError for text or lengths that don't fit the model or each other."""
    ids = np.asarray(tokens.ids[:max_tokens])
    if len(ids) < 2 or int(ids.max()) >= model.config.vocab_size:
        raise ValueError(
            f"the text has {len(ids)} tokens, the largest {ids.max(initial=0)}; the model needs two and knows "
            f"{model.config.vocab_size}; remedy: the model's own tokenizer"
        )
    trained = model.config.max_position_embeddings
    context = min(context or trained, len(ids) - 1)
    stride = stride or max(1, context // 2)
    lengths = sorted(lengths or {t for k in range(-2, 4) if 0 < (t := int(trained * 2.0**k)) < len(ids)})
    losses = sliding(model, ids, context, stride)
    pieces = {length: growing(model, ids, length) for length in lengths}
    longest = by_position(pieces[lengths[-1]])
    return {
        "tokens": len(ids),
        "trained_length": trained,
        "sliding": {"context": context, "stride": stride, **_scores(losses, ids[1:], tokenizer)},
        "lengths": [
            {"length": length, **_scores(found.ravel(), ids[1 : found.size + 1], tokenizer)}
            for length, found in pieces.items()
        ],
        "growing": {"length": lengths[-1], "pieces": len(pieces[lengths[-1]]), "positions": longest},
    }


def plot_lengths(results: dict[str, Any], title: str, path: Path) -> None:
    """Plots loss by position, and by the length of pieces, around the length of training: a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    positions = results["growing"]["positions"]
    centres = [math.sqrt(group["first"] * group["last"]) for group in positions]
    axes.plot(centres, [group["loss"] for group in positions], label="at this position")
    lengths = results["lengths"]
    axes.plot([e["length"] for e in lengths], [e["loss"] for e in lengths], "o--", label="over pieces of this length")
    axes.axvline(results["trained_length"], color="grey", linestyle=":", label="length of training")
    axes.set_xscale("log", base=2)
    axes.set(xlabel="tokens seen", ylabel="loss (nats per token)", title=title)
    axes.legend()
    figure.savefig(path, dpi=150)


def score_tasks(
    model: MixerForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str],
    *,
    include_path: Path | None = None,
    shots: int | None = None,
    limit: int | None = None,
    batch_size: int = 8,
) -> dict[str, Any]:
    """Runs lm-evaluation-harness tasks, by its own `simple_evaluate` on its own `HFLM` around the model.

    Args:
        tasks: names of tasks and groups, and patterns of them (`mmlu_*`).
        include_path: a folder with tasks of one's own, as YAML files.
        shots, limit: examples before a question, and questions of a task; None: as the task says, all.

    Raises ValueError if lm_eval isn't installed, for a task that it doesn't know, and for data that aren't there."""
    try:
        import lm_eval
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ValueError("tasks need lm-evaluation-harness; remedy: pip install lm_eval") from error
    manager = TaskManager(include_path=None if include_path is None else str(include_path))
    unknown = [task for task in tasks if not manager.match_tasks([task])]
    if unknown:
        raise ValueError(
            f"lm-evaluation-harness knows no task {', '.join(unknown)}; remedy: --include-path, or lm_eval ls"
        )
    names = manager.match_tasks(list(tasks))
    wrapped = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
    try:
        found = lm_eval.simple_evaluate(
            model=wrapped, tasks=names, task_manager=manager, num_fewshot=shots, limit=limit, log_samples=False
        )
    except OSError as error:  # of which the hub's and the network's are
        raise ValueError(
            f"cannot read the data of {', '.join(names)}: {' '.join(str(error).split())}; remedy: a connection to the "
            "Hugging Face hub, or a task with files of its own"
        ) from error
    return {"results": found["results"], "versions": found["versions"], "samples": found["n-samples"]}


def _scores(losses: np.ndarray, targets: np.ndarray, tokenizer: PreTrainedTokenizerBase | None) -> dict[str, float]:
    loss = float(losses.mean())
    scores = {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}
    if tokenizer is not None:
        scores["bits_per_byte"] = float(losses.sum()) / math.log(2) / max(1, count_bytes(tokenizer, targets))
    return scores
