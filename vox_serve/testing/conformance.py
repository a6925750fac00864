"""A conformance suite for model plugins: subclass it, define `load`, run pytest.

    from vox_serve.testing import ModelConformance

    class TestMyModel(ModelConformance):
        def load(self, device):
            return load_model(LoadOptions(TINY_CHECKPOINT, device, "float32"))

Each test checks a requirement of `vox_serve.model.Model` or `vox_serve.codec.Codec` on which the
core relies.  Use a small checkpoint in float32, because rows of a batch are compared with the same
rows run one by one.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Rows
from typing import Any

import attrs
import pytest
import torch

from vox_serve.audio.loudness import audible_seconds
from vox_serve.codec import Codec
from vox_serve.config import EngineConfig
from vox_serve.engine.engine import Engine
from vox_serve.engine.frames import Frame
from vox_serve.engine.sequence import Sequence
from vox_serve.errors import RequestError
from vox_serve.messages import Audio, Failed, Finished, SpeechRequest
from vox_serve.model import Model
from vox_serve.sampling import SamplingParams
from vox_serve.testing.replay import Step, created, cuda_graph, no_host_read, recorded

AUDIBLE_SECONDS = 0.1
"""Of a word, at least."""


@attrs.define
class Utterance:
    """The result of one request: the numbers of every frame, sound, and how it ended."""

    codes: list[tuple[float, ...]] = attrs.field(factory=list)
    pcm: bytes = b""
    end: str = ""


class ModelConformance:
    """The requirements for a model plugin, one test each.

    Override `load`, and the attributes that do not fit your model.
    """

    texts: Rows[str] = ("Hello there.", "Here is a longer second text.", "And a third.")
    """Texts of different lengths that the model can speak."""
    too_long = "word " * 20_000
    """A text that does not fit any context."""
    max_seconds = 1.0
    """The longest audio of each text, in seconds."""
    greedy: Mapping[str, float] = {"temperature": 0.0}
    """Sampling parameters that leave nothing to chance."""
    drawn: Mapping[str, float] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
    """Sampling parameters with which the seed decides."""
    audible_words: Rows[str] = ()
    """Words, as the model reads them, that a checkpoint of trained weights must be heard to say."""
    plugin_module: str | None = None
    """The plugin's module, to check that it does not import torch."""

    def load(self, device: str) -> Model:
        """Load the model in float32 on a torch device: `cpu`, or `cuda` if available."""
        raise NotImplementedError("a conformance test must define how its model is loaded")

    # Tests

    def test_the_plugin_module_loads_no_torch(self) -> None:
        if self.plugin_module is None:
            return
        code = f"import sys, {self.plugin_module}; sys.exit('torch' in sys.modules)"
        done = subprocess.run([sys.executable, "-c", code], check=False)
        assert done.returncode == 0, f"{self.plugin_module} must not import torch"

    def test_sizes_are_positive_and_agree(self) -> None:
        model = self.load("cpu")
        codec = model.codec
        for name in ("hidden_size", "max_positions"):
            assert getattr(model, name) > 0, f"model.{name} must be positive"
        for name in ("sample_rate", "frame_rate", "frame_size", "frame_width", "frames_per_step"):
            assert getattr(codec, name) > 0, f"codec.{name} must be positive"
        assert codec.codebook_size is None or codec.codebook_size > 0
        assert model.voices, "a model needs a voice"
        assert len({voice.name for voice in model.voices}) == len(model.voices)

    def test_a_text_that_cannot_fit_is_refused_in_one_line(self) -> None:
        engine = self._engine()
        refusal = None
        try:
            engine.add(SpeechRequest("long", self.too_long))
        except RequestError as error:
            refusal = error
        assert refusal, "a text that cannot fit the context must be refused"
        assert "\n" not in refusal.message, "an error message is one line"
        assert refusal.param, "the error must name the field"

    def test_a_batch_speaks_as_each_would_alone(self) -> None:
        together = self._speak(self._engine(), *self.texts)
        for text, beside in zip(self.texts, together, strict=True):
            (alone,) = self._speak(self._engine(), text)
            _same(alone, beside, f"{text!r} alone and in a batch")

    def test_joining_and_leaving_between_frames_changes_nothing(self) -> None:
        engine = self._engine(slots=2)
        spoken = _record(engine)
        for number, text in enumerate(self.texts):
            engine.add(self._request(str(number), text))
            _step(engine, spoken)
            _step(engine, spoken)
        while engine.has_work:
            _step(engine, spoken)
        for number, text in enumerate(self.texts):
            (alone,) = self._speak(self._engine(), text)
            _same(alone, spoken[str(number)], f"{text!r} alone and joining late")

    def test_a_slot_is_clean_for_its_next_sequence(self) -> None:
        engine = self._engine(slots=1)
        first, _, again = self._speak(engine, self.texts[0], self.texts[1], self.texts[0])
        _same(first, again, "the first and the third use of a slot")

    def test_cancelling_frees_the_slot(self) -> None:
        engine = self._engine(slots=1)
        engine.add(self._request("gone", self.texts[0]))
        engine.step()
        engine.abort("gone")
        assert engine.stats.running == 0
        (after,) = self._speak(engine, self.texts[1])
        (alone,) = self._speak(self._engine(), self.texts[1])
        _same(alone, after, "a slot after a cancelled sequence")

    def test_what_is_kept_of_a_conversation_changes_nothing(self) -> None:
        """A prompt with a restored prefix gives the same result as one that is run whole."""
        kept, fresh = self._engine(), self._engine(prefix_cache_mib=0)
        if not kept.prompts.takes_context:
            return
        for text in self.texts:
            (expected,) = self._speak(fresh, text, conversation="c")
            (resumed,) = self._speak(kept, text, conversation="c")
            _same(expected, resumed, f"{text!r} from scratch and after what was kept")

    def test_the_cap_ends_with_length(self) -> None:
        engine = self._engine()
        model, codec = engine.model, engine.model.codec
        frames = 3 + engine.prompts.build(self.texts[0], model.voices[0], ()).unheard
        (spoken,) = self._speak(engine, self.texts[0])
        assert len(spoken.codes) > frames, "the first text must last for more than three frames"
        seconds = 3.5 / codec.frame_rate
        (capped,) = self._speak(self._engine(), self.texts[0], max_seconds=seconds)
        _same_codes(spoken.codes[:frames], capped.codes, "the frames before the cap")
        assert capped.end == "length"
        assert len(capped.pcm) <= 2 * seconds * codec.sample_rate, "the sound is over the cap"

    def test_each_word_is_heard(self) -> None:
        """Of each word alone: one that is silent does not show in the sound of a whole text."""
        engine = self._engine(slots=16)
        rate = engine.model.codec.sample_rate
        spoken = self._speak(engine, *self.audible_words)
        silent = [
            word
            for word, utterance in zip(self.audible_words, spoken, strict=True)
            if audible_seconds(utterance.pcm, rate) < AUDIBLE_SECONDS
        ]
        assert not silent, f"nothing is heard of {silent}"

    def test_the_seed_decides(self) -> None:
        def speak(seed: int, *others: str) -> Utterance:
            fields = {"sampling": {**self.drawn, "seed": seed}}
            return self._speak(self._engine(), self.texts[0], *others, **fields)[0]

        _same(speak(1), speak(1), "the same seed twice")
        _same(speak(1), speak(1, *self.texts[1:]), "the same seed alone and in company")
        different = [speak(seed).codes != speak(1).codes for seed in (2, 3, 4)]
        assert any(different), "another seed must give other codes: is the sampler asked?"

    def test_every_choice_is_sampled(self) -> None:
        """A code or noise that does not come from the sampler ignores the seed."""
        engine = self._engine()
        codec = engine.model.codec
        asked: list[int] = []
        rows = engine.runner.sampler.rows

        def watched(numbers: list[int], slots: torch.Tensor) -> Any:
            sampler = rows(numbers, slots)
            pick, noise = sampler._pick, sampler.noise

            def picking(logits: torch.Tensor, codebook: int) -> torch.Tensor:
                asked.append(codebook)
                return pick(logits, codebook)

            def drawing(size: int, place: int = 0) -> torch.Tensor:
                asked.append(place)
                return noise(size, place)

            if codec.codebook_size is None:
                sampler.noise = drawing  # type: ignore[method-assign]  # a test double
            else:
                sampler._pick = picking  # type: ignore[method-assign]  # a test double
            return sampler

        sampler: Any = engine.runner.sampler
        sampler.rows = watched
        engine.add(self._request("x", self.texts[0]))
        engine.step()
        assert asked, "the sampler is not asked"
        assert asked == sorted(set(asked)), "each codebook is sampled once per frame"
        assert asked[0] == 0, "codebooks and places are counted from 0"
        if codec.codebook_size is not None:
            assert len(asked) == codec.frame_width

    def test_a_row_that_is_not_finite_fails_alone(self) -> None:
        healthy = self._speak(self._engine(), *self.texts)
        engine = self._engine()
        emit = engine.model.emit
        poisoned = 1

        def poison(hidden: torch.Tensor, sampler: Any) -> Any:
            hidden = hidden.clone()
            if len(hidden) > poisoned:
                hidden[poisoned] = torch.nan
            return emit(hidden, sampler)

        engine.model.emit = poison  # type: ignore[method-assign]  # a test double
        spoken = _record(engine)
        for number, text in enumerate(self.texts):
            engine.add(self._request(str(number), text))
        _step(engine, spoken)
        engine.model.emit = emit  # type: ignore[method-assign]  # a test double
        while engine.has_work:
            _step(engine, spoken)
        for number, beside in enumerate(healthy):
            if number == poisoned:
                assert spoken[str(number)].end == "generation_failed"
            else:
                _same(beside, spoken[str(number)], "a row beside one that is not finite")

    def test_codes_decode_the_same_in_any_slot_and_company(self) -> None:
        """Each row has its own codec state, in any order of slots."""
        codec = self.load("cpu").codec
        generator = torch.Generator().manual_seed(0)
        shape = (3, codec.frame_width, codec.frames_per_step * 6)
        codes = _random_frames(codec, shape, generator)

        def decode(rows: Rows[int], slots: Rows[int]) -> torch.Tensor:
            pieces = []
            for start in range(0, shape[2], codec.frames_per_step):
                part = codes[list(rows), :, start : start + codec.frames_per_step]
                reset = torch.full((len(rows),), start == 0)
                pcm, valid = codec.step(part, torch.tensor(slots), reset)
                assert pcm.shape == (len(rows), codec.frame_size)
                assert bool((valid <= codec.frame_size).all())
                pieces.append(torch.where(torch.arange(codec.frame_size) < valid[:, None], pcm, 0))
            return torch.cat(pieces, dim=1)

        with torch.inference_mode():
            codec.allocate(4)
            together = decode((0, 1, 2), (3, 0, 2))
            for row in range(3):
                alone = decode((row,), (1,))[0]
                torch.testing.assert_close(together[row], alone, atol=1e-4, rtol=1e-3)

    def test_a_cleared_slot_speaks_again(self) -> None:
        """Non-finite codec state does not affect the slot's next sequence."""
        codec = self.load("cpu").codec
        num_slots, slot = 13, 5  # a number of slots that is unlikely to equal any other size
        generator = torch.Generator().manual_seed(0)
        shape = (4, 1, codec.frame_width, codec.frames_per_step)
        codes = _random_frames(codec, shape, generator)

        def decode() -> list[tuple[torch.Tensor, torch.Tensor]]:
            steps = []
            for number, part in enumerate(codes):
                pcm, valid = codec.step(part, torch.tensor([slot]), torch.tensor([number == 0]))
                steps.append((pcm * (torch.arange(codec.frame_size) < valid[:, None]), valid))
            return steps

        with torch.inference_mode():
            state = created(lambda: codec.allocate(num_slots))
            expected = decode()
            for tensor in state:
                for dim, size in enumerate(tensor.shape):
                    if tensor.is_floating_point() and size in (num_slots, num_slots + 1):
                        tensor.select(dim, slot).fill_(torch.nan)
            codec.clear(slot)
            for got, wanted in zip(decode(), expected, strict=True):
                assert torch.equal(got[1], wanted[1]), "a cleared slot sounds at other steps"
                torch.testing.assert_close(got[0], wanted[0], atol=1e-4, rtol=1e-3)

    def test_nothing_is_read_by_the_host_while_the_model_runs(self) -> None:
        engine = self._engine()
        model = engine.model
        for owner, name in ((model, "prefill"), (model, "emit"), (model, "advance")):
            setattr(owner, name, no_host_read(getattr(owner, name)))
        codec: Any = model.codec
        codec.step = no_host_read(codec.step)
        sampling = dict(self.drawn)
        if isinstance(model.default_sampling, SamplingParams):
            sampling |= {"top_p": 0.9, "repetition_penalty": 1.2}
        for spoken in self._speak(engine, *self.texts[:2], sampling=sampling):
            assert spoken.end in ("stop", "length"), "a host read inside the model (see the log)"

    def test_replayed_operations_equal_eager(self) -> None:
        """A step function depends only on its tensors, so replaying its operations gives the same.

        This shows on a CPU that a CUDA graph can capture it.
        """
        self._replayed_equals_eager("cpu", recorded)

    def test_captured_equals_eager(self) -> None:
        """A CUDA graph of each step function replays what the function computes."""
        if not torch.cuda.is_available():
            pytest.skip("there is no CUDA device to capture on")
        if self.load("cuda").device.type != "cuda":
            pytest.skip("this model runs on the CPU alone")
        self._replayed_equals_eager("cuda", cuda_graph)

    # Tools

    @torch.inference_mode()
    def _replayed_equals_eager(self, device: str, capture: Callable[[Step], Step]) -> None:
        engine = self._engine(device=device)
        for number, text in enumerate(self.texts):
            sampling = {**self.drawn, "seed": number}
            if isinstance(engine.model.default_sampling, SamplingParams):
                sampling |= {"temperature": 0.9, "top_k": 50, "top_p": 0.9}
            engine.add(self._request(str(number), text, sampling=sampling))
        engine.step()
        model, runner = engine.model, engine.runner
        numbers = list(range(len(self.texts)))
        slots = torch.tensor(numbers, device=device)
        hidden = runner.hidden[slots]
        sampler = runner.sampler.rows(numbers, slots)
        emit = capture(lambda: model.emit(hidden, sampler))
        expected = model.emit(hidden, runner.sampler.rows(numbers, slots))
        for got, wanted in zip(emit(), expected, strict=True):
            assert torch.equal(got, wanted), "emit: captured and eager differ"
        codes = expected[0]
        advance = capture(lambda: (model.advance(codes, slots, runner.kv),))
        (wanted,) = (model.advance(codes, slots, runner.kv),)
        torch.testing.assert_close(advance()[0], wanted, atol=1e-4, rtol=1e-3)
        self._replayed_codec(device, capture)

    def _replayed_codec(self, device: str, capture: Callable[[Step], Step]) -> None:
        codec = self.load(device).codec
        generator = torch.Generator().manual_seed(0)
        shape = (6, 2, codec.frame_width, codec.frames_per_step)
        codes = _random_frames(codec, shape, generator).to(device)
        slots = torch.arange(2, device=device)
        codec.allocate(2)
        expected = [
            codec.step(part, slots, torch.full((2,), number == 0, device=device))
            for number, part in enumerate(codes)
        ]
        expected = [(pcm.clone(), valid.clone()) for pcm, valid in expected]
        codec.allocate(2)
        given, reset = codes[0].clone(), torch.ones(2, dtype=torch.bool, device=device)
        step = capture(lambda: codec.step(given, slots, reset))
        for number, part in enumerate(codes):
            given.copy_(part)
            reset.fill_(number == 0)
            pcm, valid = step()
            assert torch.equal(valid, expected[number][1]), "codec: captured and eager differ"
            heard = torch.arange(codec.frame_size, device=device) < valid[:, None]
            pcm, wanted = pcm * heard, expected[number][0] * heard
            torch.testing.assert_close(pcm, wanted, atol=1e-4, rtol=1e-3)

    def _engine(self, slots: int = 4, device: str = "cpu", **settings: Any) -> Engine:
        config = EngineConfig(model="conformance", max_batch_size=slots, **settings)
        return Engine(self.load(device), config)

    def _request(self, name: str, text: str, **fields: Any) -> SpeechRequest:
        fields.setdefault("sampling", self.greedy)
        fields.setdefault("max_seconds", self.max_seconds)
        return SpeechRequest(name, text, **fields)

    def _speak(self, engine: Engine, *texts: str, **fields: Any) -> list[Utterance]:
        spoken = _record(engine)
        for number, text in enumerate(texts):
            engine.add(self._request(str(number), text, **fields))
        while engine.has_work:
            _step(engine, spoken)
        return [spoken[str(number)] for number in range(len(texts))]


def watch_frames(engine: Engine, see: Callable[[Sequence, Frame], None]) -> None:
    """Call `see` with every frame that the host reads from now on."""
    collect = engine.runner.collect

    def watched(sequences: Any) -> Any:
        reader = collect(sequences)
        read = reader.frames

        def frames() -> list[Frame]:
            found = read()
            for sequence, frame in zip(sequences, found, strict=True):
                if sequence.finish_reason is None:
                    see(sequence, frame)
            return found

        reader.frames = frames  # type: ignore[method-assign]  # a test double
        return reader

    engine.runner.collect = watched  # type: ignore[method-assign]  # a test double


def _record(engine: Engine) -> dict[str, Utterance]:
    """Collect the results of requests from now on; `_step` fills in the sound."""
    spoken: dict[str, Utterance] = {}

    def keep(sequence: Sequence, frame: Frame) -> None:
        if frame.finite and not frame.end:
            spoken.setdefault(sequence.id, Utterance()).codes.append(frame.codes)

    watch_frames(engine, keep)
    return spoken


def _step(engine: Engine, spoken: dict[str, Utterance]) -> None:
    for event in engine.step().events:
        utterance = spoken.setdefault(event.request_id, Utterance())
        if isinstance(event, Audio):
            utterance.pcm += event.pcm
        elif isinstance(event, Finished):
            utterance.end = event.reason.value
        elif isinstance(event, Failed):
            utterance.end = event.error.code


def _random_frames(
    codec: Codec, shape: tuple[int, ...], generator: torch.Generator
) -> torch.Tensor:
    if codec.codebook_size is None:
        return torch.randn(shape, generator=generator)
    return torch.randint(codec.codebook_size, shape, generator=generator)


def _same_codes(expected: Rows[tuple[float, ...]], got: Rows[tuple[float, ...]], what: str) -> None:
    """Codes are the same; latents are, but for what the batch's size rounds differently."""
    assert len(got) == len(expected), f"{what}: {len(expected)} frames, or {len(got)}"
    wanted, found = torch.tensor(expected), torch.tensor(got)
    tolerance = 1e-3 if wanted.is_floating_point() else 0.0
    assert torch.allclose(found, wanted, rtol=tolerance, atol=tolerance), f"{what}: frames differ"


def _same(expected: Utterance, got: Utterance, what: str) -> None:
    _same_codes(expected.codes, got.codes, what)
    assert got.end == expected.end, f"{what}: one ends with {expected.end}, the other {got.end}"
    assert len(got.pcm) == len(expected.pcm), f"{what}: the sound differs in length"
