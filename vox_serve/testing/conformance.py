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

import pytest
import torch

from vox_serve.audio.loudness import audible_seconds
from vox_serve.config import EngineConfig
from vox_serve.engine.engine import Engine
from vox_serve.errors import RequestError
from vox_serve.messages import SpeechRequest
from vox_serve.sampling import SamplingParams
from vox_serve.testing.codec import CodecConformance
from vox_serve.testing.replay import Step, cuda_graph, no_host_read, recorded
from vox_serve.testing.utterances import Utterance, record, same, same_codes, step

AUDIBLE_SECONDS = 0.1
"""Of a word, at least."""


class ModelConformance(CodecConformance):
    """The requirements for a model plugin and its codec, one test each.

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
            same(alone, beside, f"{text!r} alone and in a batch")

    def test_joining_and_leaving_between_frames_changes_nothing(self) -> None:
        engine = self._engine(slots=2)
        spoken = record(engine)
        for number, text in enumerate(self.texts):
            engine.add(self._request(str(number), text))
            step(engine, spoken)
            step(engine, spoken)
        while engine.has_work:
            step(engine, spoken)
        for number, text in enumerate(self.texts):
            (alone,) = self._speak(self._engine(), text)
            same(alone, spoken[str(number)], f"{text!r} alone and joining late")

    def test_a_slot_is_clean_for_its_next_sequence(self) -> None:
        engine = self._engine(slots=1)
        first, _, again = self._speak(engine, self.texts[0], self.texts[1], self.texts[0])
        same(first, again, "the first and the third use of a slot")

    def test_cancelling_frees_the_slot(self) -> None:
        engine = self._engine(slots=1)
        engine.add(self._request("gone", self.texts[0]))
        engine.step()
        engine.abort("gone")
        assert engine.stats.running == 0
        (after,) = self._speak(engine, self.texts[1])
        (alone,) = self._speak(self._engine(), self.texts[1])
        same(alone, after, "a slot after a cancelled sequence")

    def test_what_is_kept_of_a_conversation_changes_nothing(self) -> None:
        """A prompt with a restored prefix gives the same result as one that is run whole."""
        kept, fresh = self._engine(), self._engine(prefix_cache_mib=0)
        if not kept.prompts.takes_context:
            return
        for text in self.texts:
            (expected,) = self._speak(fresh, text, conversation="c")
            (resumed,) = self._speak(kept, text, conversation="c")
            same(expected, resumed, f"{text!r} from scratch and after what was kept")

    def test_live_text_in_bits_equals_the_whole_text(self) -> None:
        """A sequence waits for text while other sequences start and end."""
        if not self.load("cpu").takes_live_text:
            return
        for sampling in (self.greedy, {**self.drawn, "seed": 3}):
            engine = self._engine()
            whole = record(engine)
            for number, text in enumerate(self.texts):
                engine.add(self._request(str(number), text, waits=60.0, sampling=sampling))
                engine.more_text(str(number), "", end=True)
            while engine.has_work:
                step(engine, whole)
            for number, got in enumerate(self._speak_in_bits(sampling)):
                same(whole[str(number)], got, f"{self.texts[number]!r} whole and in bits")

    def test_the_cap_ends_with_length(self) -> None:
        engine = self._engine()
        model, codec = engine.model, engine.model.codec
        frames = 3 + engine.prompts.build(self.texts[0], model.voices[0], ()).unheard
        (spoken,) = self._speak(engine, self.texts[0])
        assert len(spoken.codes) > frames, "the first text must last for more than three frames"
        seconds = 3.5 / codec.frame_rate
        (capped,) = self._speak(self._engine(), self.texts[0], max_seconds=seconds)
        same_codes(spoken.codes[:frames], capped.codes, "the frames before the cap")
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

        first = speak(1)
        same(first, speak(1), "the same seed twice")
        same(first, speak(1, *self.texts[1:]), "the same seed alone and in company")
        different = any(speak(seed).codes != first.codes for seed in (2, 3, 4))
        assert different, "another seed must give other codes: is the sampler asked?"

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
        spoken = record(engine)
        for number, text in enumerate(self.texts):
            engine.add(self._request(str(number), text))
        step(engine, spoken)
        engine.model.emit = emit  # type: ignore[method-assign]  # a test double
        while engine.has_work:
            step(engine, spoken)
        for number, beside in enumerate(healthy):
            if number == poisoned:
                assert spoken[str(number)].end == "generation_failed"
            else:
                same(beside, spoken[str(number)], "a row beside one that is not finite")

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
        self._replayed_prompt_equals_eager(engine, capture)
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
        self.replayed_codec(device, capture)

    def _replayed_prompt_equals_eager(
        self, engine: Engine, capture: Callable[[Step], Step]
    ) -> None:
        """One prompt, in a slot that no sequence uses."""
        model, runner = engine.model, engine.runner
        prompt = engine.prompts.build(self.texts[0], model.voices[0], ())
        inputs = {name: rows[None].to(model.device) for name, rows in prompt.inputs.items()}
        slot = torch.tensor([len(self.texts)], device=model.device)
        lengths = torch.tensor([len(prompt)], device=model.device)
        span, runner.kv.span, runner.kv.extent = runner.kv.span, None, runner.kv.max_positions
        prefill = capture(lambda: (model.prefill(inputs, lengths, slot, runner.kv),))
        (wanted,) = (model.prefill(inputs, lengths, slot, runner.kv),)
        torch.testing.assert_close(prefill()[0], wanted, atol=1e-4, rtol=1e-3)
        runner.kv.span = span

    def _engine(self, slots: int = 4, device: str = "cpu", **settings: Any) -> Engine:
        config = EngineConfig(model="conformance", max_batch_size=slots, **settings)
        return Engine(self.load(device), config)

    def _request(self, name: str, text: str, **fields: Any) -> SpeechRequest:
        fields.setdefault("sampling", self.greedy)
        fields.setdefault("max_seconds", self.max_seconds)
        return SpeechRequest(name, text, **fields)

    def _speak_in_bits(self, sampling: Mapping[str, float]) -> list[Utterance]:
        """Speak all texts at once, each in pieces of a different size, with one complete text."""
        engine = self._engine()
        spoken = record(engine)
        engine.add(self._request("beside", self.texts[-1], sampling=sampling))
        rest = dict(enumerate(self.texts))
        paused, round_number = False, 0
        while rest or engine.has_work:
            for number in [n for n in rest if n <= round_number]:
                name, text, size = str(number), rest[number], 2 * number + 1
                if text == self.texts[number]:
                    request = self._request(name, text[:size], waits=60.0, sampling=sampling)
                    engine.add(request)
                else:
                    engine.more_text(name, text[:size], end=not text[size:])
                rest[number] = text[size:]
                if not text:
                    del rest[number]
            step(engine, spoken)
            paused |= any(s.waits_for_text for s in engine.scheduler.running.values())
            round_number += 1
        assert paused, "none of the texts had to be waited for"
        return [spoken[str(number)] for number in range(len(self.texts))]

    def _speak(self, engine: Engine, *texts: str, **fields: Any) -> list[Utterance]:
        spoken = record(engine)
        for number, text in enumerate(texts):
            engine.add(self._request(str(number), text, **fields))
        while engine.has_work:
            step(engine, spoken)
        return [spoken[str(number)] for number in range(len(texts))]
