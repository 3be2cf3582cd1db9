"""How the documents are built: Markdown by MyST, warnings as errors (`make docs`)."""

project = "Whence"
author = "The Whence authors"
extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
root_doc = "README"
myst_heading_anchors = 3  # links to headings are checked
myst_enable_extensions = ["colon_fence"]
suppress_warnings = ["toc.not_included"]  # README.md lists the pages
html_theme = "alabaster"
html_theme_options = {"description": "Where a model's behaviour comes from", "page_width": "1000px"}
html_show_copyright = False
