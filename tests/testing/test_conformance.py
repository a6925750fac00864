"""The conformance suite: the tone passes it, and for each promise a wrong model fails its test."""

import pytest
import torch

from tests.talk import TalkModel
from tests.tone import ToneCodec, ToneModel
from vox_serve import Prompt
from vox_serve.testing import HostRead, ModelConformance, no_host_read


class Tone(ToneModel):
    """The tone without its faults, which read from the device."""

    def prefill(self, inputs, lengths, slots, kv):
        rows = inputs["row"]
        positions = torch.arange(rows.shape[1])[None].expand(len(slots), -1)
        kv.view(slots, positions).extend(0, rows[:, :, None], rows[:, :, None])
        return torch.stack([rows[:, 0, 0], rows[:, 0, 1], rows[:, 0, 0] * 0], dim=1)

    def emit(self, hidden, sampler):
        left, pitch, _ = hidden.unbind(1)
        ids = torch.arange(67)
        first = sampler(-0.05 * (ids - pitch[:, None]).abs(), 0)
        second = sampler(-0.05 * (ids - (first[:, None] * 7) % 64).abs(), 1)
        return torch.stack([first, second], dim=1), left <= 0

    def __init__(self):
        super().__init__()
        self.codec = QuietCodec()


class QuietCodec(ToneCodec):
    def step(self, codes, slots, reset):
        start = torch.where(reset, 0.0, self.phase[slots])
        frequency = 100.0 + 10.0 * codes[:, 0, -1] + codes[:, 1, -1]
        time = torch.arange(1, self.frame_size + 1, dtype=torch.float64) / self.sample_rate
        turns = start[:, None] + frequency[:, None] * time
        self.phase[slots] = turns[:, -1]
        return 0.5 * torch.sin(2 * torch.pi * turns).float(), torch.full_like(slots, 640)


class ToneConformance(ModelConformance):
    texts = ("9 hums", "12 hums and more", "7 x")
    audible_words = ("5", "hum")
    max_seconds = 0.8
    plugin_module = None
    model: type[ToneModel] = Tone

    def load(self, device):
        return self.model()


class TestTone(ToneConformance):
    """Pytest collects it: a correct model passes every test."""


class TalkConformance(ModelConformance):
    texts = ("hello there, you", "a second, longer text to say", "and a third")
    max_seconds = 3.0
    model: type[TalkModel] = TalkModel

    def load(self, device):
        model = self.model()
        model.codec = QuietCodec()
        return model


class TestTalk(TalkConformance):
    """A model that takes text while it speaks."""


# One wrong model per promise.


class WrongSizes(Tone):
    hidden_size = 0


class TakesAnyLength(Tone):
    max_positions = 10**6

    def prompt(self, text, voice, *, context, parameters):
        return super().prompt(text[:20], voice, context=context, parameters=parameters)


class LooksAtItsNeighbours(Tone):
    def emit(self, hidden, sampler):
        return super().emit(hidden + (len(hidden) > 1) * torch.tensor([0.0, 3.0, 0.0]), sampler)


class ForgetsItsPosition(Tone):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def advance(self, codes, slots, kv):
        self.calls += 1  # a counter of the model instead of one per row
        hidden = super().advance(codes, slots, kv)
        return hidden + torch.tensor([0.0, float(self.calls % 5), 0.0])


class LeavesStateInTheSlot(Tone):
    def __init__(self):
        super().__init__()
        self.used = torch.zeros(8)

    def prefill(self, inputs, lengths, slots, kv):
        hidden = super().prefill(inputs, lengths, slots, kv)
        self.used[slots] += 4
        return hidden + self.used[slots][:, None] * torch.tensor([0.0, 1.0, 0.0])


class StopsTooSoon(Tone):
    def emit(self, hidden, sampler):
        codes, _ = super().emit(hidden, sampler)
        return codes, codes[:, 0] != 99


class PicksByItself(Tone):
    def emit(self, hidden, sampler):
        _, end = super().emit(hidden, sampler)
        pitch = hidden[:, 1].nan_to_num().long() % 64
        return torch.stack([pitch, pitch], dim=1), end


class SamplesTwice(Tone):
    def emit(self, hidden, sampler):
        super().emit(hidden, sampler)
        return super().emit(hidden, sampler)


class SpreadsNaN(Tone):
    def emit(self, hidden, sampler):
        return super().emit(hidden + 0 * hidden.sum(0, keepdim=True), sampler)


class SharesItsPhase(Tone):
    class Codec(QuietCodec):
        def step(self, codes, slots, reset):
            pcm, valid = super().step(codes, slots, reset)
            self.phase[:] = self.phase[slots[0]]
            return pcm, valid

    def __init__(self):
        super().__init__()
        self.codec = self.Codec()


class ReadsTheDevice(Tone):
    def emit(self, hidden, sampler):
        if hidden[:, 0].max().item() < -100:
            return super().emit(hidden * 0, sampler)
        return super().emit(hidden, sampler)


class LooksAtItsFirstRow(Tone):
    """It declares the context of its prompts as shared, but still reads its first row."""

    def prompt(self, text, voice, *, context, parameters):
        rows = super().prompt(text, voice, context=(), parameters=parameters).inputs["row"]
        shared = sum(1 + s.codes.shape[1] for s in context)
        before = 1.0 + torch.arange(shared)[:, None].expand(-1, 4) % 9
        return Prompt({"row": torch.cat([before, rows])}, shared)

    def prefill(self, inputs, lengths, slots, kv):
        hidden = super().prefill(inputs, lengths, slots, kv)
        hidden[:, 1] += inputs["row"][:, 0, 0]
        return hidden


class MasksByAProduct(Tone):
    """It resets by multiplying with 0, but 0 x NaN is NaN."""

    class Codec(QuietCodec):
        def step(self, codes, slots, reset):
            self.phase[slots] *= ~reset
            return super().step(codes, slots, torch.zeros_like(reset))

        def clear(self, slot):
            pass

    def __init__(self):
        super().__init__()
        self.codec = self.Codec()


class CountingCodec(QuietCodec):
    calls = 0

    def step(self, codes, slots, reset):
        self.calls += 1
        pcm, valid = super().step(codes, slots, reset)
        return pcm * (0.9 if self.calls % 2 else 1.0), valid


class CountsOnTheHost(Tone):
    def __init__(self):
        super().__init__()
        self.codec = CountingCodec()


class SaysShortTextsInSilence(Tone):
    """Like a voice that was trained on words and is silent for a single consonant."""

    class Codec(QuietCodec):
        def step(self, codes, slots, reset):
            pcm, valid = super().step(codes, slots, reset)
            return pcm * (codes[:, :1, -1] > 13), valid  # no code of `5` is so high

    def __init__(self):
        super().__init__()
        self.codec = self.Codec()


class CountsWordsInBits(TalkModel):
    """A character's token depends on its position in the piece of text that it came with."""

    def tokens(self, text, end):
        tokens, rest = super().tokens(text, end)
        return [token and token + place for place, token in enumerate(tokens)], rest


WRONG = {
    "test_live_text_in_bits_equals_the_whole_text": CountsWordsInBits,
    "test_each_word_is_heard": SaysShortTextsInSilence,
    "test_sizes_are_positive_and_agree": WrongSizes,
    "test_a_text_that_cannot_fit_is_refused_in_one_line": TakesAnyLength,
    "test_a_batch_speaks_as_each_would_alone": LooksAtItsNeighbours,
    "test_joining_and_leaving_between_frames_changes_nothing": ForgetsItsPosition,
    "test_a_slot_is_clean_for_its_next_sequence": LeavesStateInTheSlot,
    "test_cancelling_frees_the_slot": LeavesStateInTheSlot,
    "test_what_is_kept_of_a_conversation_changes_nothing": LooksAtItsFirstRow,
    "test_the_cap_ends_with_length": StopsTooSoon,
    "test_the_seed_decides": PicksByItself,
    "test_every_choice_is_sampled": SamplesTwice,
    "test_a_row_that_is_not_finite_fails_alone": SpreadsNaN,
    "test_codes_decode_the_same_in_any_slot_and_company": SharesItsPhase,
    "test_a_cleared_slot_speaks_again": MasksByAProduct,
    "test_replayed_operations_equal_eager": CountsOnTheHost,
    "test_nothing_is_read_by_the_host_while_the_model_runs": ReadsTheDevice,
}


@pytest.mark.parametrize("promise", WRONG)
def test_a_wrong_model_fails(promise):
    suite = ToneConformance()
    suite.model = WRONG[promise]
    with pytest.raises(AssertionError):
        getattr(suite, promise)()


def test_a_heavy_plugin_module_fails(tmp_path, monkeypatch):
    (tmp_path / "heavy.py").write_text("import torch\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    suite = ToneConformance()
    suite.plugin_module = "heavy"
    with pytest.raises(AssertionError, match="must not import torch"):
        suite.test_the_plugin_module_loads_no_torch()


def test_every_promise_has_its_wrong_model():
    promises = {name for name in vars(ModelConformance) if name.startswith("test_")}
    assert promises - set(WRONG) == {
        "test_the_plugin_module_loads_no_torch",
        "test_captured_equals_eager",  # it has the same body as the replayed test
    }


def set_a_number(x: torch.Tensor) -> None:
    x[torch.tensor([0])] = 2.0


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.item(),
        bool,
        lambda x: x[x > 0],
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        set_a_number,
    ],
)
def test_a_host_read_is_detected(read):
    with pytest.raises(HostRead):
        no_host_read(read)(torch.ones(1))
