"""Facts in a terminal."""

from rich.console import Console

from segpipe.inspect.facts import Facts, ModelFacts
from segpipe.inspect.show_model import print_model
from segpipe.inspect.show_raster import print_raster


def print_facts(facts: Facts) -> None:
    """What ``segpipe inspect`` found, for a person; names may hold anything, so nothing in them is markup."""
    console = Console(markup=False, highlight=False, emoji=False)
    if isinstance(facts, ModelFacts):
        print_model(console, facts)
    else:
        print_raster(console, facts)
