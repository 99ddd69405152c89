"""Effects of edges along the way writer → reader → logits alone: all writers of one reader at once.

Everything else is frozen, so a reader's node is computed for each writer, and nothing after it: what it writes more goes straight
to the stream that the logits read, at the positions that the metric reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cutaway.circuits.components import Written, attended, embedded, mlp_writes, project_by_head, read_by
from cutaway.circuits.graph import READS, Edges, Graph
from cutaway.model.norm import post_norm
from cutaway.model.positions import Stream
from cutaway.model.products import linear
from cutaway.model.transformer import Transformer
from cutaway.runs.metrics import Metric

ROOM = 2**23  # numbers of the largest tensor


class DirectEffects:
    """A run whose readers read changed streams, one reader at a time.

    Args:
        now: what the run's writers add.
        change: what each adds instead, minus that, `[writer, batch, pos, d_model]`.
    """

    def __init__(self, model: Transformer, tokens: Tensor, metric: Metric, now: Written, change: Tensor):
        self.model, self.metric, self.now, self.change = model, metric, now, change
        self.graph, self.stream = Graph(model.cfg), embedded(model, tokens)[1]
        self.streams = now.streams
        self.wanted = metric.wanted(*tokens.shape).to(tokens.device)
        self.places = self.wanted.any(0).nonzero()[:, 0]  # positions that the metric reads
        self.tokens = self.wanted.nonzero(as_tuple=True)
        self.columns = None if (columns := metric.columns()) is None else columns.to(tokens.device)
        changed = change.abs().amax((0, 1, 3)).nonzero()[:, 0]
        self.start = int(changed[0]) if len(changed) else 0
        self.clean = self._logits(self.streams[-1][:, self.places][None])[0]
        self.value = self._measured(self.clean[None])[0]

    def each(
        self, wanted: Edges, progress: Callable[[float, float], None] | None = None
    ) -> Iterator[tuple[Tensor, int, Float[Tensor, "writer batch"]]]:
        """For these edges: writers, their reader, and the changes of the metric."""
        total, done = int(wanted.sum()), 0
        _, batch, length, width = self.change.shape
        vocabulary = self.model.cfg.d_vocab_out if self.columns is None else len(self.columns)
        room = max(1, ROOM // max(batch * (length - self.start) * width, len(self.tokens[0]) * vocabulary))
        for reader in wanted.any(0).nonzero()[:, 0].tolist():
            for writers in wanted[:, reader].nonzero()[:, 0].split(room):
                last = self.streams[-1][:, self.places] + self._written(reader, self.change[writers])
                yield writers, reader, self._measured(self._logits(last)) - self.value
                done += len(writers)
                if progress is not None:
                    progress(done, total)

    def _logits(self, last: Float[Tensor, "writer batch place d_model"]) -> Float[Tensor, "writer token column"]:
        at, places = self.tokens
        return self.model.logits_of(last[:, at, torch.searchsorted(self.places, places)], self.columns)

    def _measured(self, logits: Float[Tensor, "writer token column"]) -> Float[Tensor, "writer batch"]:
        count = len(logits)
        examples, places = (one.repeat(count) for one in self.tokens)
        clean = self.clean.repeat(count, 1) if self.metric.compares else None
        values = self.metric.of_tokens(logits.flatten(0, 1), examples, places, clean).unflatten(0, (count, -1))
        return self.metric.by_example(values, self.wanted)

    def _written(
        self, reader: int, change: Float[Tensor, "writer batch pos d_model"]
    ) -> Float[Tensor, "writer batch place d_model"]:
        """What the reader's node writes more, at the metric's positions."""
        name = self.graph.readers[reader]
        if name == "logits":
            return change[:, :, self.places]
        layer, count = int(name.split(".")[0]), len(change)
        if name.endswith(".mlp"):
            block, before = self.model.blocks[layer], self.streams[2 * layer + 1][:, self.places]
            new = mlp_writes(block, (before + change[:, :, self.places]).flatten(0, 1)).unflatten(0, (count, -1))
            return new - mlp_writes(block, before)
        return self._head_writes(layer, int(name.split(".")[1]), name[-1], change).unflatten(0, (count, -1))

    def _head_writes(self, layer: int, head: int, which: str, change: Tensor) -> Float[Tensor, "row place d_model"]:
        """The same of a head; rows are writers × examples."""
        block, count, resid = self.model.blocks[layer], len(change), self.streams[2 * layer]
        own = [project_by_head(block, each, read_by(block, each, resid, self.stream), [head]) for each in READS]
        old = self._seen(block, own, 1)
        shift = self.stream.shortformer
        rows = Stream(shortformer=None if shift is None else shift[:, self.start :].repeat(count, 1, 1))
        x = (resid[:, self.start :] + change[:, :, self.start :]).flatten(0, 1)
        at = READS.index(which)
        own = [one.repeat(count, 1, 1, 1) for one in own]
        own[at][:, self.start :] = project_by_head(block, which, read_by(block, which, x, rows), [head])
        new = self._seen(block, own, count)
        if isinstance(post_norm(block, "ln1_post"), nn.Identity):
            return linear((new - old.repeat(count, 1, 1, 1))[:, :, 0], block.attn.W_O[head])
        every = [project_by_head(block, each, read_by(block, each, resid, self.stream)) for each in READS]
        z = attended(block, every, self.stream)[:, self.places]
        changed = z.repeat(count, 1, 1, 1)
        changed[:, :, head] = new[:, :, 0]
        before: Tensor = post_norm(block, "ln1_post")(block.attn.output(z))
        after: Tensor = post_norm(block, "ln1_post")(block.attn.output(changed))
        return after - before.repeat(count, 1, 1)

    def _seen(self, block: Any, own: list[Tensor], count: int) -> Float[Tensor, "row place 1 d_head"]:
        """What a head has seen at the metric's positions, from its queries, keys and values."""
        padding = self.stream.padding if self.stream.padding is None else self.stream.padding.repeat(count, 1)
        lengths = self.stream.texts(self.streams[0].shape[1])
        queries, keys = Stream(0, padding, at=self.places, lengths=lengths), Stream(0, padding)
        q, k = block.attn.as_read(own[0][:, self.places], "q", queries), block.attn.as_read(own[1], "k", keys)
        z: Tensor = block.attn.attend(q, k, own[2], queries)
        return z
