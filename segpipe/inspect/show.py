"""Print facts in a terminal."""

from segpipe.inspect.facts import Facts, ModelFacts, RasterFacts
from segpipe.inspect.show_model import print_model
from segpipe.inspect.show_raster import print_raster
from segpipe.inspect.show_volume import print_volume
from segpipe.messages.console import console


def print_facts(facts: Facts) -> None:
    """Print the result of ``segpipe inspect``; names may contain anything, so nothing in them is taken as markup."""
    terminal = console()
    if isinstance(facts, ModelFacts):
        print_model(terminal, facts)
    elif isinstance(facts, RasterFacts):
        print_raster(terminal, facts)
    else:
        print_volume(terminal, facts)
