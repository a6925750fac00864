"""Spectra that losses and measurements share: STFT magnitudes and mel bands."""

from __future__ import annotations

from functools import cache

import torch

from plugins.demo_voice.training.config import SAMPLE_RATE

FLOOR = 1e-4
"""Of band magnitudes, where a full-scale sine has about 0.5: -80 dB."""


def magnitudes(sound: torch.Tensor, window: int, hop: int) -> torch.Tensor:
    """STFT magnitudes of `[B, N]`, `[B, window // 2 + 1, N // hop + 1]`; Hann, centred."""
    taper = torch.hann_window(window, device=sound.device)
    spectrum = torch.stft(
        sound, window, hop, window=taper, center=True, pad_mode="constant", return_complex=True
    )
    power = spectrum.real.square() + spectrum.imag.square()
    # The root of zero has no gradient.
    return (power + 1e-12).sqrt() / taper.sum()


@cache
def mel_bands(window: int, bands: int, device: torch.device) -> torch.Tensor:
    """Triangles `[bands, window // 2 + 1]`, even on the mel scale of O'Shaughnessy (1987).

    Each triangle's weights sum to one, and none is empty, however narrow.
    """

    def hertz(mel: torch.Tensor) -> torch.Tensor:
        return 700 * (10 ** (mel / 2595) - 1)

    top = 2595 * torch.log10(torch.tensor(1 + SAMPLE_RATE / 2 / 700))
    edges = hertz(torch.linspace(0, float(top), bands + 2)) * window / SAMPLE_RATE
    low, centre, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    bins = torch.arange(window // 2 + 1)[None].float()
    rising = (bins - low) / (centre - low).clamp(min=1)
    falling = (high - bins) / (high - centre).clamp(min=1)
    weights = torch.minimum(rising, falling).clamp(min=0)
    nearest = torch.nn.functional.one_hot(centre[:, 0].round().long(), window // 2 + 1)
    weights = torch.where(weights.sum(1, keepdim=True) > 0, weights, nearest.float())
    return (weights / weights.sum(1, keepdim=True)).to(device)


def log_mel(sound: torch.Tensor, window: int, hop: int, bands: int) -> torch.Tensor:
    """Natural log of mel band magnitudes `[B, bands, frames]`, floored at `FLOOR`."""
    mel = mel_bands(window, bands, sound.device) @ magnitudes(sound, window, hop)
    return mel.clamp(min=FLOOR).log()


RESOLUTIONS = ((256, 24), (512, 40), (1024, 80), (2048, 120))
"""Windows and bands of the waveform decoder's loss."""
FINE_WINDOWS, FINE_FLOOR = (1024, 2048), 1e-5
"""Windows for which the loss also compares each bin: harmonics, and lines in hiss and pauses, which
mel bands hide."""


CEPSTRAL_WINDOW, COEFFICIENTS = 1024, 13
"""The window for which the loss also compares the envelope, like the evaluation (`measure.py`)."""


@cache
def cepstral_basis(bands: int, device: torch.device) -> torch.Tensor:
    """Orthonormal DCT-II, coefficients 1 to 13, `[13, bands]`."""
    order = torch.arange(1, COEFFICIENTS + 1)[:, None]
    basis = torch.cos(torch.pi / bands * order * (torch.arange(bands) + 0.5))
    return (basis * (2 / bands) ** 0.5).to(device)


def spectral_loss(made: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean log-mel distance of `[B, N]` over the resolutions, with a share for loud peaks.

    One resolution adds the distance of its mel cepstra, which gives errors of the envelope more
    weight.  The longest windows add the distance of their bins.
    """
    total = made.new_zeros(())
    for window, bands in RESOLUTIONS:
        filters = mel_bands(window, bands, made.device)
        ours, theirs = (magnitudes(x, window, window // 4) for x in (made, target))
        a, b = (filters @ x for x in (ours, theirs))
        apart = a.clamp(min=FLOOR).log() - b.clamp(min=FLOOR).log()
        total = total + apart.abs().mean()
        if window in FINE_WINDOWS:
            fine = ours.clamp(min=FINE_FLOOR).log() - theirs.clamp(min=FINE_FLOOR).log()
            total = total + 0.5 * fine.abs().mean()
        if window == CEPSTRAL_WINDOW:
            envelope = cepstral_basis(bands, made.device) @ apart
            # The root of zero has no gradient.
            total = total + 0.6 * (envelope.square().sum(1) + 1e-6).sqrt().mean()
        total = total + 0.5 * (a - b).abs().mean() / b.mean().clamp(min=FLOOR)
    return total / len(RESOLUTIONS)


PERIOD_WINDOW, LONGEST_PERIOD = 2048, 0.029
"""The window in which repetitions are compared, and the longest one in seconds; the shortest is
2 ms."""
PERIOD_BANDS = ((50, 600), (600, 2500), (3000, 11000))
"""Hertz: the lowest harmonics, which show the pitch; the higher ones; hiss, which must not
repeat."""
QUIET = 1e-7
"""Power, where a full-scale sine has 0.25, below which repetitions count little."""


def period_loss(made: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """How differently sounds `[B, N]` repeat: the distance of their normalised autocorrelations.

    Spectra show a wrong pitch only where its harmonics overlap those of the right one, and a buzz
    has the same bands as a hiss.  The fourth power gives peaks weight, and a band counts where it
    holds much of the target's power: hiss in fricatives, harmonics in vowels.
    """
    powers = [magnitudes(x, PERIOD_WINDOW, PERIOD_WINDOW // 4).square() for x in (made, target)]
    bins = torch.arange(PERIOD_WINDOW // 2 + 1, device=made.device) * SAMPLE_RATE // PERIOD_WINDOW
    lags = slice(int(0.002 * SAMPLE_RATE), int(LONGEST_PERIOD * SAMPLE_RATE))
    loud = powers[1].sum(1)
    total = made.new_zeros(())
    for low, high in PERIOD_BANDS:
        band = ((bins >= low) & (bins < high))[:, None]
        ours, theirs = (torch.fft.irfft(power * band, dim=1) for power in powers)
        # A silent frame's autocorrelation is zero instead of noise.
        ours, theirs = (x[:, lags] / (x[:, :1] + QUIET / PERIOD_WINDOW) for x in (ours, theirs))
        apart = ((ours - theirs) ** 4).mean(1)
        share = (powers[1] * band).sum(1) / (loud + QUIET)
        weight = share.square() * loud / (loud + QUIET)
        # The root of zero has no gradient.
        total = total + ((apart + 1e-9) ** 0.25 * weight).sum() / weight.sum().clamp(min=1)
    return total
