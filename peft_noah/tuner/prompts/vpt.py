"""VPT-deep: learnable tokens that a block reads beside the image's own."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from peft_noah.tuner.prompts.base import init_normal
from peft_noah.tuner.prompts.tokens import TokenModule, plan_streams

#: most tokens in one block
MAX_TOKENS = 4_096


class Vpt(TokenModule):
    """m learnable tokens of a block, with elastic m.

    The block's input becomes ``[CLS, P, E]`` (``config.vpt_position = "after_cls"``, the paper) or ``[CLS, E, P]``
    (``"last"``, the released code); ``tokens`` P has shape (m, D), one set for all images. When the block is done its
    tokens leave the stream, so that ``last_hidden_state`` and all hidden states but the first, which is what block 0
    reads, keep their usual length. With ``config.vpt_past_depth = "carry"`` (the released code) tokens run on through
    blocks that have none of their own, and the hidden states between those are longer too.
    Source: NOAH, section 3.1, after VPT-deep (arXiv 2203.12119).
    """

    name = "vpt"
    label = "VPT (tokens)"
    colour = "#009E73"
    alone = 10  # the largest of the VTAB-1k space

    def _configure(self, config) -> None:
        self.position = config.vpt_position
        self.dropout = nn.Dropout(config.dropout)

    def shapes(self, dim: int) -> dict[str, tuple[int, ...]]:
        return {"tokens": (dim, self.out_features)}

    def reset_parameters(self, config) -> None:
        init_normal(self.tokens, config.init_weights)

    @classmethod
    def check_stored(cls, dim: int) -> None:
        """Refuse more tokens than attention should see.

        Raises:
            ValueError: if a block would store more than 4,096.
        """
        if dim > MAX_TOKENS:
            raise ValueError(
                f"a block is to read {dim:,} VPT tokens, and attention costs the square of them: at most {MAX_TOKENS:,} "
                "are allowed. Choose a smaller dim."
            )

    @classmethod
    def runs_on(cls, config) -> bool:
        """In the released code, tokens run on past VPT's depth."""
        return config.vpt_past_depth == "carry"

    @classmethod
    def connect(cls, modules: Sequence[Vpt], num_blocks: int, config) -> None:
        """Tell each block how many tokens enter and leave it."""
        vpts = {vpt.block: vpt for vpt in modules}
        dims = [vpts[block].dim if block in vpts else None for block in range(num_blocks)]
        for block, stream in enumerate(plan_streams(dims, config.vpt_past_depth)):
            if block in vpts:
                vpts[block].stream = stream

    @classmethod
    def fix_shapes(cls, modules: Sequence[Vpt], num_blocks: int, config) -> None:
        """Let each block expect the largest stream.

        Raises:
            ValueError: where blocks store different numbers of tokens.
        """
        stored = [vpt.max_dim for vpt in modules] + [0] * (num_blocks - len(modules))
        if len({*stored}) > 1:
            raise ValueError(
                f"shapes cannot be fixed: the blocks store {stored} VPT tokens, and all must store equally many. Choose a "
                "search space in which every block may carry VPT, or train without compiling."
            )
        streams = plan_streams([stored[0], *[0] * (num_blocks - 1)], config.vpt_past_depth)
        for vpt in modules:
            vpt.largest_stream = streams[vpt.block]

    @classmethod
    def check_batch(cls, one: Sequence[Vpt], other: Sequence[Vpt], names: tuple[str, str]) -> None:
        """Refuse adapters with different tokens: one batch has one length.

        Raises:
            ValueError: names the block, and what its tokens are in both.
        """
        ours, theirs = (
            {vpt.block: (vpt.dim, vpt.stream[0], vpt.position) for vpt in vpts if vpt.passing} for vpts in (one, other)
        )
        for block in sorted(ours.keys() | theirs.keys()):
            here, there = ours.get(block, (0, 0, None)), theirs.get(block, (0, 0, None))
            if here != there:
                raise ValueError(
                    f"adapters {names[0]!r} and {names[1]!r} cannot share a batch: in block {block} they have {here[0]} and "
                    f"{there[0]} VPT tokens of their own, {here[1]} and {there[1]} that run on, at {here[2]} and "
                    f"{there[2]}. Mix adapters with equal tokens, or call the model once per adapter."
                )
