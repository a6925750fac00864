"""What a model plugin implements: `Model`, and the light `ModelSpec` that announces it.

Importing this module does not import torch, so that listing models stays fast.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

import attrs

from vox_serve.codec import SlotState
from vox_serve.errors import PromptTooLong
from vox_serve.sampling import Parameters, Sampler, SamplingParams
from vox_serve.text import FrontEnd
from vox_serve.voice import Segment, Voice

if TYPE_CHECKING:
    import torch

    from vox_serve.codec import Codec


API_VERSION = 1
"""Version of the interface between core and plugins; incremented when plugins must change."""


Inputs: TypeAlias = "Mapping[str, torch.Tensor]"
"""Tensors by the names that the model chose."""


@attrs.frozen(eq=False)
class Prompt:
    """A request prepared for prefill.

    `inputs` are CPU tensors `[T, ...]` under names the model chooses; the runner pads them with
    zeros to the longest, stacks them to `[B, T, ...]` and moves them to the device.
    """

    inputs: Inputs
    """Empty if more of a growing text is needed first (`LiveText`)."""
    shared: int = 0
    """Leading positions that hold the voice and the context; other texts may follow them."""
    given: tuple[torch.Tensor, torch.Tensor] | None = None
    """Keys and values `[layers, P, H, D]` of the first P positions, which are copied, not run; for
    example those of a stored voice.  There, `inputs` only identifies them for the prefix cache."""
    unheard: int = 0
    """Frames of an utterance without sound, for example of a delay; a limit in seconds does not
    count them."""
    later: torch.Tensor | None = None
    """int64 `[N]`: text tokens that are fed together with the frames, one with each, if the model
    takes text that way (`StepwiseText`)."""

    def __len__(self) -> int:
        """T, the number of positions in the prompt."""
        return len(next(iter(self.inputs.values()), ()))

    @property
    def taken(self) -> int:
        """Positions of the prompt and of the text that is fed with the first frames."""
        return len(self) + (0 if self.later is None else len(self.later))

    def require_room(self, max_positions: int, before: str) -> None:
        """Raise PromptTooLong unless a frame fits after the prompt and the text.

        Names the text, or `before`, the field of what precedes the text.
        """
        leading = self.shared if self.given is None else self.given[0].shape[1]
        if self.taken >= max_positions:
            field = before if self.taken - leading < max_positions else "text"
            raise PromptTooLong(
                f"{field} is too long: the prompt takes {self.taken} positions of the "
                f"{max_positions} that the model has",
                field,
            )


@attrs.frozen
class KVLayout:
    """The shape of a model's key/value cache, from which the core allocates it."""

    num_layers: int
    num_kv_heads: int
    head_dim: int


NO_CACHE = KVLayout(num_layers=0, num_kv_heads=1, head_dim=1)

Place: TypeAlias = "tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]"
"""Keys and values `[S, P, H, D]` of a layer, slots `[B]`, and the position `[B]` to write."""


class KVView(Protocol):
    """The cache as one batch sees it during one forward pass."""

    @property
    def mask(self) -> torch.Tensor | None:
        """bool, broadcast to `[B, 1, T, E]`: True where a query may attend; None: everywhere."""
        ...

    def extend(
        self, layer: int, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write keys and values `[B, T, H, D]` and return all `[B, E, H, D]` to attend to."""
        ...

    def place(self, layer: int) -> Place:
        """For a pass over one position, by a kernel that writes and reads the cache itself."""
        ...


class KVCache(Protocol):
    """Keys and values with a row per slot, owned by the core."""

    lengths: torch.Tensor
    """int64 `[S]`, positions filled per slot.  The runner advances it after the model has run."""

    def view(self, slots: torch.Tensor, positions: torch.Tensor) -> KVView:
        """The rows of `slots` `[B]` for queries at `positions` `[B, T]`."""
        ...


class Model(ABC):
    """A text-to-speech model: three functions over tensors and one over text.

    `prefill`, `emit` and `advance` are pure in the sense that matters on a GPU: static
    shapes, no `.item()`, no host branch on device data.  One implementation then runs
    eagerly on a CPU and captured in a CUDA graph.  What a row computes must not depend
    on the other rows, and only the cache and state of the model's own may be written to:
    `hidden` and `codes` may be the runner's own buffers.

    A model with its own state, a row per slot, is also a `SlotState`; `prefill` resets the rows
    of its slots.  Each function may be run again for the same frame, if it raised for another
    row, and must then write the same (`Sampler.frame` counts the frames).

    Shapes: B rows of the batch, K numbers per frame (the codec's), H hidden size.

    Args:
        options: device and dtype, among others.
        codec: loaded, on the same device.
    """

    codec: Codec
    device: torch.device
    dtype: torch.dtype
    hidden_size: int
    max_positions: int
    """Context: prompt positions plus one per frame must fit."""
    kv_layout: KVLayout = NO_CACHE
    takes_context: bool = False
    """Whether it uses earlier turns.  If so, its codec encodes; if not, `prompt` gets no context,
    and its voices have segments only if clients registered them (see `EncodingCodec`)."""
    takes_live_text: bool = False
    """Whether text may follow while it speaks; if so, it is a `LiveText`."""
    voices: Sequence[Voice] = (Voice("default", speaker=0),)
    """A request's `speaker` selects the first voice with that speaker id."""
    weight_bytes: int
    """Memory that the weights take, the codec's included."""
    default_sampling: Parameters = SamplingParams()
    """The defaults of a request's parameters, of the class that the `ModelSpec` names."""

    def __init__(self, options: LoadOptions, codec: Codec) -> None:
        import torch

        self.codec = codec
        self.device, self.dtype = torch.device(options.device), getattr(torch, options.dtype)

    @abstractmethod
    def prompt(
        self, text: str, voice: Voice, *, context: Sequence[Segment], parameters: Parameters
    ) -> Prompt:
        """Build the prompt: the voice's segments, then `context`, then `text`.

        A model that needs no more than text and voice declares `**others`.

        `parameters` are the request's, of the class of `default_sampling`; for example, a
        language or an instruction is part of the prompt.

        Every segment has codes.  In a conversation, a prompt should begin like the previous one,
        and continue with one position for each frame that was generated, as `advance` fed it, so
        that the cached part need not be run again.  Otherwise it only takes longer.
        The core refuses a prompt that does not fit `max_positions`.

        Raises:
            UnspeakableText: the tokenizer or the voice cannot render the text.
            InvalidRequest: a parameter cannot be used.
        """

    @abstractmethod
    def prefill(
        self,
        inputs: Inputs,
        lengths: torch.Tensor,
        slots: torch.Tensor,
        kv: KVCache,
    ) -> torch.Tensor:
        """Run prompts through the model.

        A prompt that runs alone on CUDA may be captured in a graph, like `emit` and `advance`.

        Args:
            inputs: the prompts' tensors, padded and stacked, `[B, T, ...]`.
            lengths: int64 `[B]`, each prompt's own length.
            slots: int64 `[B]`.
            kv: `kv.lengths[slots]` positions are filled already (a voice prefix, or 0).

        Returns:
            hidden `[B, H]` at each prompt's last position.
        """

    @abstractmethod
    def emit(self, hidden: torch.Tensor, sampler: Sampler) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden `[B, H]` to one frame: codes or latents `[B, K]`, and end bool `[B]`.

        A frame with `end` set is not decoded to audio.
        """

    @abstractmethod
    def advance(self, codes: torch.Tensor, slots: torch.Tensor, kv: KVCache) -> torch.Tensor:
        """One frame `[B, K]` to the next hidden `[B, H]`, at `kv.lengths[slots]`."""


@runtime_checkable
class StepwiseText(SlotState, Protocol):
    """A model that takes text while it speaks: one token is fed with each frame."""

    def put_text(self, slot: int, start: int, ids: torch.Tensor) -> None:
        """Set the tokens that are fed with frames start, start + 1, ... of a slot's utterance.

        The frames after them get padding.  Called between steps, with `Prompt.later` at the start.
        """
        ...


@runtime_checkable
class LiveText(StepwiseText, Protocol):
    """A model that can begin before its text is complete (`Model.takes_live_text`).

    A row waits while it has no token for its next frame.  Its codes must not depend on how the
    text was cut into messages.
    """

    def tokens(self, text: str, end: bool) -> tuple[list[int], str]:
        """The next tokens that no further text can change, and the rest of the text.

        The rest is passed again, before the text that follows.

        Args:
            text: at the beginning of an utterance, has no leading white space.
            end: no text follows, so the rest is empty and the last token marks the end.
        """
        ...

    def live_prompt(
        self,
        tokens: Sequence[int],
        end: bool,
        voice: Voice,
        *,
        context: Sequence[Segment],
        parameters: Parameters,
    ) -> Prompt:
        """Like `Model.prompt`, for the tokens so far; tokens not in the prompt are in `later`.

        Its inputs are empty if it needs more tokens; the core calls again when there are more.
        """
        ...


@attrs.frozen
class LoadOptions:
    """Where a model's weights are and how to hold them in memory."""

    directory: Path
    device: str
    dtype: str
    """`bfloat16` or `float32`: the number format of the computation."""
    weights: str | None = None
    """How linear layers store their weights (see `vox_serve.nn.linear`); None: in `dtype`."""


@attrs.frozen
class ModelSpec:
    """Announces a kind of model without importing a tensor library.

    Args:
        name: short and unique, e.g. `csm`.
        summary: one line for `vox-serve models`.
        hub_ids: hub repositories known to hold such checkpoints.
        matches: whether a checkpoint's `config.json` describes such a model.
        files: glob patterns of the files to download from the hub, or a function that makes
            them of `config.json`.
        load: builds the model.  Raises CheckpointError.
        front_end: normalizes text for its voices, in another process, so it can be pickled;
            None: the text is used as it is written.
        parameters: the settings of a request that change how the model speaks.
        languages: the languages that it speaks, as tags such as `en`.
        holds: whether a directory without a `config.json` contains such a checkpoint.
        max_characters: of one piece of text, as for a `CheckpointSpec` that names none.
        api_version: version of the plugin interface that the plugin was written for.
    """

    name: str
    summary: str
    hub_ids: tuple[str, ...]
    matches: Callable[[Mapping[str, Any]], bool]
    files: Callable[[Mapping[str, Any]], Sequence[str]] | Sequence[str]
    load: Callable[[LoadOptions], Model]
    front_end: FrontEnd | None = None
    parameters: type[Parameters] = SamplingParams
    languages: tuple[str, ...] = ()
    holds: Callable[[Path], bool] = lambda directory: False
    max_characters: int | None = None
    api_version: int = 1


@attrs.frozen
class CheckpointSpec:
    """A named checkpoint: an alias for `--model`.

    Args:
        alias: what the user types, e.g. `demo`.
        source: a directory or a hub id.
        summary: one line; shown by `vox-serve models` and in the start-up banner.
        max_characters: of one piece of text; the server cuts longer ones at sentence borders.
        max_words: the same, in words.
        front_end: normalizes text for the voice before it is counted; None: the model's own
            front end is used.
        languages: what it speaks, as language tags; empty: those of the model.
        takes_context: False for a voice that was not trained with earlier turns; requests that
            contain any are rejected.
    """

    alias: str
    source: str
    summary: str
    max_characters: int | None = None
    max_words: int | None = None
    takes_context: bool = True
    front_end: FrontEnd | None = None
    languages: tuple[str, ...] = ()
