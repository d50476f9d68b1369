"""Links names of the library in prose, such as `fdrl.flow`, to the API reference.

Pages write them as plain code, so they read the same outside of the site.
"""

from typing import Any

from docutils import nodes
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.nodes import make_refnode

from docs import api_pages


class ApiLinks(SphinxPostTransform):
    """Replaces code that names a documented object by a link to it."""

    default_priority = 5

    def run(self, **kwargs: Any) -> None:
        """Links the names on one page."""
        if self.env.docname.startswith("api/"):
            return
        objects = self.env.domaindata["py"]["objects"]
        for node in list(self.document.findall(nodes.literal)):
            if isinstance(node.parent, nodes.title | nodes.reference):
                continue
            if name := api_pages.documented_name(node.astext(), objects):
                there = objects[name]
                node.replace_self(
                    make_refnode(
                        self.app.builder,
                        self.env.docname,
                        there.docname,
                        there.node_id,
                        node.deepcopy(),
                        name,
                    )
                )
