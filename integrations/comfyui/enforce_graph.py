"""Puts guards into a graph: behind what makes pictures, around cut latents, before what saves or shows something."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nsfw_guard.errors import GuardError

from . import enforce_types as table
from .enforce_types import kind_of

AT_SOURCE, AT_OUTPUT, UNCUT = "NSFWG_EnforcedSource", "NSFWG_Enforced", "NSFWG_EnforcedUncut"
ALLOW = "NSFW_GUARD_ALLOW"
_OWN = (AT_SOURCE, AT_OUTPUT, UNCUT)
Link = list[Any]
# Text of fewer characters holds no picture.
_FEW = 24


class GraphRefused(GuardError):
    """A graph that cannot be guarded, with a reason that its author may read.

    Attributes:
        node: The node that it is about.
    """

    def __init__(self, node: str, reason: str) -> None:
        super().__init__(reason)
        self.node = node


def guarded_graph(prompt: Any, allowed: frozenset[str]) -> dict[str, Any]:
    """Return a prompt with its guards; one that was guarded before gets the same again.

    Args:
        prompt: Nodes by id, as ``POST /prompt`` takes them; never written to.
        allowed: The classes of nodes, or single inputs as ``Class.input``, that may be given what cannot be looked at.

    Raises:
        GraphRefused: It shows what cannot be looked at.
    """
    graph = _Graph(prompt, allowed)
    return graph.guarded()


def guarded_expansion(
    graph: Mapping[str, Any], results: Sequence[Any] | None, allowed: frozenset[str]
) -> tuple[dict[str, Any], tuple[Any, ...] | None]:
    """Guard what a node puts in its place while it runs: its graph, and what its own outputs become.

    What comes from outside of the graph is taken for new.
    """
    inner = _Graph(graph, allowed, closed=False)
    nodes = inner.guarded()
    if results is None:
        return nodes, None
    links = [link_in(value) for value in results]
    made = tuple(
        value if link is None else inner.at_source(inner.behind_guards(link))
        for value, link in zip(results, links, strict=True)
    )
    return {**nodes, **inner.added}, made


def link_in(value: Any) -> Link | None:
    """A link as ComfyUI will read it, out of the wrapping that it takes off later."""
    while isinstance(value, dict) and "__value__" in value:
        value = value["__value__"]
    linked = isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)
    return list(value) if linked and isinstance(value[1], (int, float)) else None


class _Graph:
    def __init__(self, prompt: Any, allowed: frozenset[str], *, closed: bool = True) -> None:
        self.allowed, self.closed = allowed, closed
        self.added: dict[str, Any] = {}
        self._types: dict[str, frozenset[str]] = {}
        self.given: dict[str, Any] = {}
        for key, node in prompt.items():
            kept = {name: value for name, value in node.items() if name != "is_changed"}  # a client's word on the cache
            self.given[key] = {**kept, "inputs": dict(node.get("inputs", {}))}
        self.kinds = {key: kind_of(node["class_type"]) for key, node in self.given.items()}
        # Guards that came with it, from the history or from somebody who wants to be taken for guarded.
        self.nodes = {key: node for key, node in self.given.items() if node["class_type"] not in _OWN}
        for node in self.nodes.values():
            for name, value in node["inputs"].items():
                link = link_in(value)
                if link is not None and link[0] in self.given and link[0] not in self.nodes:
                    node["inputs"][name] = self.behind_guards(link)
        self.links = {
            key: {name: link for name, value in node["inputs"].items() if (link := link_in(value)) is not None}
            for key, node in self.nodes.items()
        }

    def behind_guards(self, link: Link) -> Link:
        """What a link leads to when the guards that came with the graph are taken out."""
        seen = set()
        while link[0] in self.given and self.given[link[0]]["class_type"] in _OWN:
            inner = link_in(self.given[link[0]]["inputs"].get("value"))
            if inner is None or link[0] in seen:
                said = f"node {link[0]} is a guard of this server, and guards nothing; remove it"
                raise GraphRefused(link[0], said)
            seen.add(link[0])
            link = inner
        return link

    def guarded(self) -> dict[str, Any]:
        made = {key: {**node, "inputs": dict(node["inputs"])} for key, node in self.nodes.items()}
        for key, links in self.links.items():
            shows = self.kinds[key].shows
            if shows:
                self._refuse_own_pictures(key)
            for name, link in links.items():
                if not isinstance(link[1], int):
                    raise GraphRefused(key, f"{self._named(key)} links to output {link[1]} of node {link[0]}")
                if self.closed and link[0] not in self.nodes:
                    if shows:
                        raise GraphRefused(key, f"node {key} links to {link[0]}, which is not in the prompt")
                    continue  # ComfyUI refuses it, if anything needs this node
                into = self.kinds[key].inputs.get(name)
                if not self.closed and link[0] not in self.nodes and not shows and self._takes_none(key, into):
                    continue
                guarded = self.at_source(link)
                if shows:
                    guarded = self._at_output(key, name, link, guarded)
                if guarded != link:
                    made[key]["inputs"][name] = guarded
            if shows and not self.closed:
                self._guard_values(key, made[key]["inputs"])
        return {**made, **self.added}

    def _guard_values(self, key: str, inputs: dict[str, Any]) -> None:
        """Guard what a node that expands gives an output without a link: nobody could look at it before."""
        if any(self._decodes_from_outside(source) for source in self.nodes):
            raise GraphRefused(
                key,
                f"{self._named(key)} is put into the graph while it runs, and saves or shows what was decoded there "
                "from a latent of outside. Decode it outside",
            )
        for name, value in inputs.items():
            few = isinstance(value, str) and len(value) < _FEW
            few = few or value is None or isinstance(value, (bool, int, float))
            if not few and link_in(value) is None and self.allowed.isdisjoint({self.kinds[key].name}):
                inputs[name] = self._add(f"{key}_nsfw_guard_{name}", AT_OUTPUT, {"value": value})

    def _decodes_from_outside(self, key: str) -> bool:
        if not any(table.may_hold_pictures(types) for types in self.kinds[key].outputs):
            return False
        for at in self._behind(key):
            declared = self.kinds[at].inputs
            for name, value in self.nodes[at]["inputs"].items():
                link = link_in(value)
                outside = _holds_latent(value) if link is None else link[0] not in self.nodes
                if outside and declared.get(name, table.LATENT_WAYS) & table.LATENT_WAYS:
                    return True
        return False

    def _behind(self, key: str) -> list[str]:
        """A node, and those from which latents may come to it."""
        found = [key]
        for at in found:
            found += {link[0]: 0 for link in self._latents_into(at) if link[0] in self.nodes and link[0] not in found}
        return found

    def at_source(self, link: Link) -> Link:
        """The link to a guard behind an output, or the very same if nothing new can come out there."""
        types = self.types_of(link)
        if not (self.is_source(link[0]) and table.may_hold_pictures(types)):
            return link
        key, index = link
        value = link
        if key not in self.nodes:
            return self._add(f"{key}_nsfw_source_{index}", AT_SOURCE, {"value": value})
        for number, latent in enumerate(self.uncut(key)):
            inputs = {"value": value, "latent": latent, "vae": self._vae_for(key, latent)}
            value = self._add(f"{key}_nsfw_uncut_{index}_{number}", UNCUT, inputs)
        return self._add(f"{key}_nsfw_source_{index}", AT_SOURCE, {"value": value})

    def is_source(self, key: str) -> bool:
        """Whether a node may put out a picture that it was not given: only core is trusted to change pictures."""
        if key not in self.nodes:
            return True
        kind = self.kinds[key]
        if not kind.core or kind.remote:
            return True
        given = self._linked_types(key)
        return table.makes_pictures(given) or not table.may_hold_pictures(given)

    def types_of(self, link: Link) -> frozenset[str]:
        """The types that may come out of a link; those of core's switches are what goes into them."""
        key, index = link
        if key not in self.nodes or not isinstance(index, int):
            return frozenset({table.ANYTHING})
        kind = self.kinds[key]
        try:
            types = kind.outputs[index]
        except IndexError:
            return frozenset({table.ANYTHING})
        switches = kind.core and types & table.LATENT_WAYS & table.PICTURES and self.links[key]
        return self._linked_types(key) if switches else types

    def _linked_types(self, key: str) -> frozenset[str]:
        if key not in self._types:
            self._types[key] = frozenset({table.ANYTHING})  # for a circle, which ComfyUI refuses
            self._types[key] = frozenset().union(*map(self.types_of, self.links[key].values()))
        return self._types[key]

    def uncut(self, key: str) -> list[Link]:
        """The latents on the way to a node, as they were before something cut, turned or mixed them."""
        found: list[Link] = []
        for at in self._behind(key)[1:]:
            if not self._keeps_whole(at):
                found += [link for link in self._latents_into(at) if link not in found and not self._is_empty(link)]
        return found

    def _latents_into(self, key: str) -> list[Link]:
        return [link for link in self.links[key].values() if self.types_of(link) & table.LATENT_WAYS]

    def _keeps_whole(self, key: str) -> bool:
        kind, inputs = self.kinds[key], self.nodes[key]["inputs"]
        frames = kind.name in table.ALONG and inputs.get("dim") in table.TIMES
        return (kind.core and (kind.name in table.WHOLE or frames)) or table.samples(self._linked_types(key))

    def _is_empty(self, link: Link) -> bool:
        """Whether a latent holds no picture that was not looked at before; a switch holds what goes into it."""
        if link[0] not in self.nodes:
            return False
        kind = self.kinds[link[0]]
        return kind.core and kind.name in table.EMPTY

    def _vae_for(self, key: str, latent: Link) -> Link:
        declared = self.kinds[key].inputs
        vaes = [
            link
            for name, link in self.links[key].items()
            if "VAE" in self.types_of(link) | declared.get(name, frozenset())
        ]
        if not vaes:
            raise GraphRefused(
                key,
                f"{self._named(key)} shows a latent after something has cut, turned or mixed it, behind "
                f"{self._named(latent[0])}, and no VAE is linked to it with which to look at the whole. Link the "
                "latent as it was, or decode with VAE Decode",
            )
        return vaes[0]

    def _at_output(self, key: str, name: str, link: Link, guarded: Link) -> Link:
        kind, types = self.kinds[key], self.types_of(link)
        passes = table.PASSES.get(kind.name, {}).get(name.split(".")[0], frozenset()) if kind.core else frozenset()
        if types <= passes:
            return guarded
        allowed = not self.allowed.isdisjoint({kind.name, f"{kind.name}.{name}"})
        unseen = types <= table.OPAQUE | table.DRAWN | {table.LATENT}
        if allowed:
            return guarded if unseen else self._add(f"{key}_nsfw_guard_{name}", AT_SOURCE, {"value": guarded})
        if unseen and kind.known:
            raise GraphRefused(
                key,
                f"{self._named(key)} saves or shows what is linked to {name}, and {self._said(types)} cannot be "
                f"looked at. Unlink it, or ask the operator to put {kind.name}.{name} into {ALLOW}",
            )
        return self._add(f"{key}_nsfw_guard_{name}", AT_OUTPUT, {"value": guarded})

    def _refuse_own_pictures(self, key: str) -> None:
        """Refuse what shows pictures, or drawn things, that it has made itself: nobody can look before that."""
        kind = self.kinds[key]
        if not kind.known or kind.name in self.allowed or (kind.core and not kind.remote):
            return
        given = self._linked_types(key)
        makes = kind.remote or (
            not table.may_hold_pictures(given) and any(table.may_hold_pictures(types) for types in kind.outputs)
        )
        if makes:
            raise GraphRefused(
                key,
                f"{self._named(key)} makes pictures and saves or shows them itself, before they can be looked at. Take "
                f"another node, or ask the operator to put {kind.name} into {ALLOW}",
            )

    def _takes_none(self, key: str, into: frozenset[str] | None) -> bool:
        return bool(self.kinds[key].core and into and not table.may_hold_pictures(into))

    def _named(self, key: str) -> str:
        kind = self.kinds.get(key)
        return f"node {key} ({kind.name})" if kind else f"node {key}"  # the page shows quotes as &apos;

    def _said(self, types: frozenset[str]) -> str:
        return f"a {' or '.join(sorted(types))}"

    def _add(self, key: str, class_type: str, inputs: dict[str, Any]) -> Link:
        added = {"class_type": class_type, "inputs": inputs}
        while key in self.nodes or self.added.get(key, added) != added:
            key += "_"
        self.added[key] = added
        return [key, 0]


def _holds_latent(value: Any) -> bool:
    if isinstance(value, Mapping):
        return "samples" in value or any(map(_holds_latent, value.values()))
    return isinstance(value, (list, tuple)) and any(map(_holds_latent, value))
