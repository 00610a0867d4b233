"""compare.html: one file without network; charts are inline SVG, colours follow the scheme."""

from prunekern.compare.page.page import to_html

__all__ = ["to_html"]
