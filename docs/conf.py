# Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
"""Settings of Sphinx, which `make docs` runs. Nothing is fetched from a network."""

from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

import vared2_mmaction

project = 'vared2_mmaction'
author = 'vared2_mmaction contributors'
copyright = author
release = version = vared2_mmaction.__version__

extensions = ['sphinx.ext.autodoc', 'sphinx.ext.napoleon', 'myst_parser']
exclude_patterns = ['_build']
myst_heading_anchors = 3

autodoc_member_order = 'bysource'
autodoc_typehints = 'description'
autodoc_typehints_description_target = 'documented_params'
autodoc_default_options = {'members': True, 'show-inheritance': True}
autodoc_inherit_docstrings = False  # PyTorch's are written for authors of modules
napoleon_google_docstring = True
napoleon_numpy_docstring = False

# References must lead somewhere. Those to other projects cannot, for want of their inventories.
nitpicky = True
nitpick_ignore_regex = [
    (r'py:.*', r'(torch|numpy|np|mmengine|mmaction|mmcv|matplotlib|rich|argparse)\..*'),
    (r'py:.*', r'(collections|contextlib|os|pathlib|typing|typing_extensions|functools)\..*'),
    (r'py:class', r'vared2_mmaction\..*\._\w+|_pickle\..*'),  # private bases
    (r'py:(class|obj|exc)', r'[A-Za-z]+Error|Tensor|Path|Any|Self|Callable|optional|ellipsis'),
]

html_theme = 'alabaster'
html_theme_options = {
    'description': 'Video adaptive redundancy reduction for MMAction2',
    'font_size': '15px',
    'page_width': '1180px',
    'body_max_width': '900px',
    'sidebar_width': '240px',
}
html_static_path = ['_static']
html_css_files = ['site.css']
toc_object_entries = False  # the sidebar lists pages and modules
html_show_sourcelink = False
html_show_copyright = False


def resolve_by_last_part(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, contnode: nodes.Element
) -> nodes.Element | None:
    """Find what a docstring calls by its bare name, as `LayerCost.unit`, in another module."""
    if node.get('refdomain') != 'py':
        return None
    domain: Any = env.domains['py']
    ending = '.' + node['reftarget']
    found = {(o.docname, o.node_id) for name, o in domain.objects.items() if name.endswith(ending)}
    if len(found) != 1:
        return None
    ((document, anchor),) = found
    source = node.get('refdoc', env.docname)
    uri = app.builder.get_relative_uri(source, document) + '#' + anchor
    return nodes.reference('', '', contnode, internal=True, refuri=uri)


def keep_as_text(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Stop Napoleon from taking what is before a colon in an attribute's docstring for its type.

    Fields of named tuples that nobody described have a docstring from Python: it is dropped.
    """
    if lines and lines[0].startswith('Alias for field number'):
        lines.clear()
    elif what in ('attribute', 'data', 'property'):
        lines[:0] = ['..', '']  # an empty comment, which has no colon


def setup(app: Sphinx) -> None:
    app.connect('missing-reference', resolve_by_last_part)
    app.connect('autodoc-process-docstring', keep_as_text, priority=400)  # before Napoleon
