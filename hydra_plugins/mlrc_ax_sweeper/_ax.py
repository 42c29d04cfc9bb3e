"""The one place where Ax is imported: it takes seconds, warns about its own parts, and logs at once."""

import logging
import warnings
from importlib.metadata import version

_disabled_before = logging.root.manager.disable
with warnings.catch_warnings():
    # Ax 1.3.1, botorch 0.18.1 and pyro warn about their use of each other (2026-11)
    warnings.simplefilter("ignore")
    logging.disable(logging.INFO)
    import torch as torch
    from ax.adapter.cross_validation import cross_validate as cross_validate
    from ax.adapter.registry import Generators as Generators
    from ax.api.client import Client as Client
    from ax.api.configs import ChoiceParameterConfig as ChoiceParameterConfig
    from ax.api.configs import RangeParameterConfig as RangeParameterConfig
    from ax.core.data import Data as Data
    from ax.core.data import DataRow as DataRow
    from ax.exceptions.core import SearchSpaceExhausted as SearchSpaceExhausted
    from ax.generation_strategy.center_generation_node import CenterGenerationNode as CenterGenerationNode
    from ax.generation_strategy.generation_node import GenerationNode as GenerationNode
    from ax.generation_strategy.generation_strategy import GenerationStrategy as GenerationStrategy
    from ax.generation_strategy.generator_spec import GeneratorSpec as GeneratorSpec
    from ax.utils.sensitivity.sobol_measures import ax_parameter_sens as ax_parameter_sens
logging.disable(_disabled_before)

AX_VERSION = version("ax-platform")
