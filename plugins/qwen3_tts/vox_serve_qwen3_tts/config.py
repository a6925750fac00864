"""A checkpoint's `config.json` as typed sizes and ids; missing keys get the package's defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from vox_serve import CheckpointError
from vox_serve.nn import LlamaConfig
from vox_serve.sizes import check_sizes
from vox_serve_qwen3_tts.plugin import MAX_POSITIONS, TAGS

RESERVED = 1024
"""The last ids of the talker's vocabulary: the end, languages, speakers; only the end is picked."""
TALKER_DEFAULTS: Mapping[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 2048,
    "num_hidden_layers": 20,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
}
DEPTH_DEFAULTS: Mapping[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 5,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
}
TABLES = (
    "talker_config", "code_predictor_config", "speaker_encoder_config", "codec_language_id",
    "spk_id", "spk_is_dialect", "encoder_config", "decoder_config", "rope_scaling",
)  # fmt: skip
COUNTS: Mapping[str, tuple[int, int]] = {
    **dict.fromkeys(("num_code_groups", "encoder_valid_num_quantizers"), (1, 256)),
    **dict.fromkeys(
        ("text_hidden_size", "enc_dim", "enc_channels", "enc_attention_channels",
         "enc_se_channels"),
        (1, 2**16),
    ),
    **dict.fromkeys(("enc_kernel_sizes", "enc_dilations", "enc_res2net_scale"), (1, 64)),
    **dict.fromkeys(("upsample_rates", "mrope_section"), (1, 1024)),
    **dict.fromkeys(("input_sample_rate", "output_sample_rate"), (1000, 384_000)),
    **dict.fromkeys(
        ("im_start_token_id", "im_end_token_id", "tts_bos_token_id", "tts_eos_token_id",
         "tts_pad_token_id", "codec_bos_id", "codec_eos_token_id", "codec_pad_id",
         "codec_think_id", "codec_nothink_id", "codec_think_bos_id", "codec_think_eos_id"),
        (0, 2**22),
    ),
}  # fmt: skip
"""The limits of sizes that only these configurations have; see `vox_serve.sizes`."""
KINDS = ("custom_voice", "voice_design", "base")


@attrs.frozen
class TextIds:
    """Text tokens that stand beside codes."""

    begin: int
    end: int
    pad: int
    turn_begin: int
    turn_end: int


@attrs.frozen
class CodeIds:
    """Ids of the talker's vocabulary that are not codes."""

    begin: int
    end: int
    pad: int
    think: int
    nothink: int
    think_begin: int
    think_end: int


@attrs.frozen
class QwenConfig:
    """Sizes of one checkpoint.

    Args:
        kind: one of KINDS: speaks with its own voices, with described ones, or with cloned ones.
        instructed: does it follow instructions?
        talker, depth: the two stacks.
        num_codebooks: K.
        codes: per codebook.
        talker_vocab: ids of codebook 0, RESERVED ones included.
        text_vocab, text_width: of the table of text tokens.
        speakers: ids in the talker's vocabulary, by name.
        dialects: the language that a speaker has in place of Chinese, by the speaker's name.
        languages: ids in the talker's vocabulary, by tag.
        speaker_encoder: its sizes, unchanged.
    """

    kind: str
    instructed: bool
    talker: LlamaConfig
    depth: LlamaConfig
    num_codebooks: int
    codes: int
    talker_vocab: int
    text_vocab: int
    text_width: int
    text: TextIds
    code: CodeIds
    speakers: Mapping[str, int]
    dialects: Mapping[str, int]
    languages: Mapping[str, int]
    speaker_encoder: Mapping[str, Any]

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> QwenConfig:
        """Raises CheckpointError if the sizes contradict each other or are not supported."""
        if config.get("model_type") != "qwen3_tts":
            raise CheckpointError(
                f"not a Qwen3-TTS checkpoint: config.json says model_type "
                f"{config.get('model_type')!r}"
            )
        check_sizes("config.json", config, COUNTS, {}, TABLES)
        kind, codec = config.get("tts_model_type"), config.get("tokenizer_type")
        if kind not in KINDS:
            raise CheckpointError(f"tts_model_type is {kind!r}; it must be one of {KINDS}")
        if codec != "qwen3_tts_tokenizer_12hz":
            raise CheckpointError(
                f"tokenizer_type is {codec!r}; only 'qwen3_tts_tokenizer_12hz' is supported"
            )
        talker = config.get("talker_config") or {}
        depth = talker.get("code_predictor_config") or {}
        books, vocab = int(talker.get("num_code_groups", 32)), int(talker.get("vocab_size", 3072))
        codes = int(depth.get("vocab_size", 2048))
        expected = {
            "code_predictor_config.num_code_groups": (depth.get("num_code_groups", 32), books),
            "code_predictor_config.vocab_size": (codes, vocab - RESERVED),
            "use_sliding_window": (talker.get("use_sliding_window", False), False),
            "code_predictor_config.use_sliding_window": (
                depth.get("use_sliding_window", False),
                False,
            ),
        }
        for key, (found, wanted) in expected.items():
            if found != wanted:
                raise CheckpointError(f"talker_config.{key} is {found!r}; expected {wanted!r}")
        languages = talker.get("codec_language_id") or {}
        named = {str(name).lower(): _number(languages, name) for name in languages}
        speakers = talker.get("spk_id") or {}
        read = cls(
            kind=kind,
            # The small checkpoint was not trained with instructions, as the package says.
            instructed=kind == "voice_design"
            or (kind == "custom_voice" and config.get("tts_model_size") != "0b6"),
            talker=_stack(talker, TALKER_DEFAULTS, MAX_POSITIONS),
            depth=_stack(depth, DEPTH_DEFAULTS, books),
            num_codebooks=books,
            codes=codes,
            talker_vocab=vocab,
            text_vocab=_number(talker, "text_vocab_size"),
            text_width=int(talker.get("text_hidden_size", 2048)),
            text=TextIds(
                begin=int(config.get("tts_bos_token_id", 151672)),
                end=int(config.get("tts_eos_token_id", 151673)),
                pad=int(config.get("tts_pad_token_id", 151671)),
                turn_begin=int(config.get("im_start_token_id", 151644)),
                turn_end=int(config.get("im_end_token_id", 151645)),
            ),
            code=CodeIds(
                begin=_number(talker, "codec_bos_id"),
                end=_number(talker, "codec_eos_token_id"),
                pad=_number(talker, "codec_pad_id"),
                think=_number(talker, "codec_think_id"),
                nothink=_number(talker, "codec_nothink_id"),
                think_begin=_number(talker, "codec_think_bos_id"),
                think_end=_number(talker, "codec_think_eos_id"),
            ),
            speakers={str(name): _number(speakers, name) for name in speakers},
            dialects={
                str(name): named[str(dialect).lower()]
                for name, dialect in (talker.get("spk_is_dialect") or {}).items()
                if dialect
            },
            languages={
                TAGS.get(name, name): number
                for name, number in named.items()
                if "dialect" not in name
            },
            speaker_encoder=config.get("speaker_encoder_config") or {},
        )
        texts, code_ids = attrs.astuple(read.text), attrs.astuple(read.code)
        for kind_of_id, ids, below in (
            ("text", texts, read.text_vocab),
            ("codec", (*code_ids, *read.speakers.values(), *named.values()), vocab),
        ):
            if not all(0 <= number < below for number in ids):
                raise CheckpointError(
                    f"config.json: a {kind_of_id} id is {max(ids)}; each must be below the "
                    f"vocabulary's size, {below}"
                )
        if not codes <= read.code.end < vocab:
            raise CheckpointError("config.json: codec_eos_token_id is the id of a code")
        return read


def _stack(config: Mapping[str, Any], defaults: Mapping[str, Any], positions: int) -> LlamaConfig:
    read = LlamaConfig.from_json(config, defaults)
    most = min(read.max_position_embeddings, positions)
    return attrs.evolve(read, max_position_embeddings=most, head_norms=True)


def _number(config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool):
        raise CheckpointError(f"talker_config.{key} is {value!r}; it must be an integer")
    return value
