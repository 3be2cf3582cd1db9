"""No circle of imports, also not inside functions. Imports for the type checker only do not count."""

import grimp
import numpy as np
import pytest
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components

# circles that are still there: this list only ever shrinks
CIRCLES: set[tuple[str, ...]] = set()


def circles(graph: grimp.ImportGraph) -> set[tuple[str, ...]]:
    """The strongly connected components of more than one module."""
    modules = sorted(graph.modules)
    number = {module: at for at, module in enumerate(modules)}
    pairs = [(number[m], number[other]) for m in modules for other in graph.find_modules_directly_imported_by(m)]
    importers, imported = zip(*pairs)
    arrows = csr_matrix((np.ones(len(pairs)), (importers, imported)), (len(modules), len(modules)))
    count, component = connected_components(arrows, connection="strong")
    found = (tuple(modules[at] for at in np.flatnonzero(component == k)) for k in range(count))
    return {together for together in found if len(together) > 1}


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("whence", exclude_type_checking_imports=True, cache_dir=None)


def test_no_new_circle(graph: grimp.ImportGraph) -> None:
    assert circles(graph) <= CIRCLES


def test_a_circle_would_be_found(graph: grimp.ImportGraph) -> None:
    one, two = "whence.cache.store.store", "whence.cache.store.layout"
    graph.add_import(importer=two, imported=one)
    assert any({one, two} <= set(together) for together in circles(graph))
