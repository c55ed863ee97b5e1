"""What every stage uses and none changes: configs, requests, the model, the tools around an engine.

Import names from the module that defines them, for example
``from common.request import SamplingParams``. This package imports no stage, and its
control-plane modules import no torch.
"""
