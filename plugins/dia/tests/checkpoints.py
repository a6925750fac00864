"""Small random checkpoints in the hub's layout, and transformers' results for them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from transformers import (
    DacConfig,
    DacModel,
    DiaConfig,
    DiaFeatureExtractor,
    DiaForConditionalGeneration,
    DiaProcessor,
    DiaTokenizer,
    GenerationConfig,
)

CODES, BOOKS = 32, 4
END, PAD, BEGIN, VOCAB = CODES, CODES + 1, CODES + 2, CODES + 4
DELAYS = [0, 2, 3, 4]
TOP_K, GUIDANCE = 12, 3.0
RATE = 8000
HOP = 128
MOST_FRAMES = 100
"""Of an utterance."""


TOKENS = {"eos_token_id": END, "pad_token_id": PAD, "bos_token_id": BEGIN}


def configuration(**decoder: Any) -> DiaConfig:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 16}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    cross = {"cross_num_attention_heads": 4, "cross_num_key_value_heads": 2, "cross_head_dim": 8}
    return DiaConfig(
        encoder_config={**sizes, **heads, "max_position_embeddings": 96, "hidden_size": 48},
        decoder_config={
            **sizes,
            **heads,
            **cross,
            "cross_hidden_size": 48,
            "max_position_embeddings": 1000,
            "vocab_size": VOCAB,
            "num_channels": BOOKS,
            **TOKENS,
            **decoder,
        },
        delay_pattern=DELAYS,
        **TOKENS,  # where transformers 4 has them
    )


def dac_configuration(**sizes: Any) -> DacConfig:
    named = {
        "encoder_hidden_size": 8,
        "downsampling_ratios": [2, 4, 4, 4],
        "decoder_hidden_size": 64,
        "n_codebooks": BOOKS,
        "codebook_size": CODES,
        "codebook_dim": 8,
        "sampling_rate": RATE,
    }
    return DacConfig(**{**named, **sizes})


@attrs.frozen(eq=False)
class Reference:
    """transformers' Dia and DAC, with the weights of the checkpoint in `directory`."""

    directory: Path
    model: DiaForConditionalGeneration
    dac: DacModel

    @property
    def processor(self) -> DiaProcessor:
        extractor = DiaFeatureExtractor(sampling_rate=RATE, hop_length=HOP)
        return DiaProcessor(extractor, DiaTokenizer(), self.dac)

    def columns(
        self,
        text: str,
        clip: torch.Tensor | None = None,
        guidance: float = GUIDANCE,
        top_k: int = TOP_K,
    ) -> tuple[torch.Tensor, int]:
        """The delayed codes `[T, K]` of the greedy answer, without the prompt, and the number of
        audible frames."""
        given = self.inputs(text, clip)
        begins = int((given["decoder_input_ids"][0, :, 0] != PAD).sum())
        config = GenerationConfig(
            do_sample=False,
            guidance_scale=guidance,
            top_k=top_k,
            max_new_tokens=MOST_FRAMES,
            eos_token_id=END,
            pad_token_id=PAD,
            bos_token_id=BEGIN,
            decoder_start_token_id=BEGIN,
        )
        made = self.model.generate(**given, generation_config=config)[0, begins:]
        heard = int((made[:, 0] == END).nonzero()[0])
        return made, heard

    def sound(self, columns: torch.Tensor, heard: int) -> torch.Tensor:
        """`[heard * HOP]`."""
        codes = [columns[d : d + heard, book] for book, d in enumerate(DELAYS)]
        with torch.no_grad():
            found: torch.Tensor = self.dac.decode(audio_codes=torch.stack(codes)[None]).audio_values
        return found[0]

    def inputs(self, text: str, clip: torch.Tensor | None) -> dict[str, torch.Tensor]:
        """The output of transformers' processor for a text and a clip."""
        audio = {} if clip is None else {"audio": [clip.numpy()], "sampling_rate": RATE}
        ids = {"eos_token_id": END, "pad_token_id": PAD, "bos_token_id": BEGIN}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="`max_length` is ignored")
            found: dict[str, torch.Tensor] = self.processor(
                text=[text], delay_pattern=DELAYS, **ids, **audio
            )
        return found


def write_checkpoint(directory: Path, seed: int = 0, **decoder: Any) -> Reference:
    """Write Dia to `directory`, and DAC to `directory/dac`."""
    torch.manual_seed(seed)
    model = DiaForConditionalGeneration(configuration(**decoder)).eval()
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, std=0.25)
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.8, 1.2)
        if "embed" in name:
            torch.nn.init.normal_(parameter)
    model.save_pretrained(directory)
    (directory / "generation_config.json").unlink(missing_ok=True)
    return Reference(directory, model, write_dac(directory / "dac", seed))


def write_dac(directory: Path, seed: int = 0, **sizes: Any) -> DacModel:
    dac = DacModel(dac_configuration(**sizes)).eval()
    # All drawn here: what the constructor draws differs between versions of transformers.
    torch.manual_seed(seed)
    for name, parameter in sorted(dac.named_parameters()):
        if name.endswith("alpha"):
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
        elif name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
        elif "codebook" in name:
            torch.nn.init.normal_(parameter)
        else:
            torch.nn.init.normal_(parameter, std=0.08)
    dac.save_pretrained(directory)
    return dac


def delayed(codes: torch.Tensor, delays: Sequence[int] = DELAYS, rest: int = 0) -> torch.Tensor:
    """Codes `[B, K, F]` as delayed columns `[B, K, F + rest]`, padded with reserved ids."""
    columns = torch.full((*codes.shape[:2], codes.shape[2] + rest), END)
    for book, delay in enumerate(delays):
        columns[:, book, delay : delay + codes.shape[2]] = codes[:, book]
    return columns
