"""The shipped voice passes the conformance suite, and every text that it accepts is audible."""

import string

from vox_serve.config import EngineConfig
from vox_serve.engine.load import load_engine
from vox_serve.model import Model
from vox_serve.plugins import load_plugins
from vox_serve.testing import ModelConformance
from vox_serve_demo_voice.text import FRONT_END

SIGNS = "% & @ # + = $5 1/2 2^2 > 5\N{DEGREE SIGN}C"
SHORT_FORMS = "Mr Dr vs etc km kg ml mm cm lbs mph kWh GHz km/h BBC XYZ PhD nth hmm shh tsk brr pst"
WRITTEN = (*string.ascii_lowercase, *string.digits, *SIGNS.split(), *SHORT_FORMS.split())


class TestDemoVoice(ModelConformance):
    texts = ("hello there.", "a second and longer text.", "and a third.")
    plugin_module = "vox_serve_demo_voice.plugin"
    audible_words = tuple(FRONT_END.read(written).text for written in WRITTEN)

    def load(self, device: str) -> Model:
        found = load_plugins()
        if "demo" not in found.checkpoints:
            found = load_plugins(("vox_serve_csm.plugin", "vox_serve_demo_voice.plugin"))
        config = EngineConfig("demo", device=device, dtype="float32")
        return load_engine(config, found)[0].model
