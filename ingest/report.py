"""The report on a dataset: one page for who made it and for who wants to learn from it.

It reads the manifest once and a few lines of the rejects, never a structure, so that it takes as long for a
hundred million of them as for one. What the manifest does not say is left out with a sentence.
"""

from pathlib import Path

from gfm.runtime.pages import Card, Page, write_page
from gfm.runtime.quantities import byte_count, duration, listed
from ingest.report_distributions import distribution_sections
from ingest.report_elements import element_sections
from ingest.report_facts import Facts, percent
from ingest.report_provenance import provenance_sections, work_sections
from ingest.report_references import reference_sections
from ingest.report_rejects import reject_sections
from ingest.report_sections import dataset_sections, split_sections
from store.manifest import Manifest

__all__ = ["default_report", "write_report"]


def default_report(dataset: Path) -> Path:
    """Return where the report of a dataset goes by default: beside it, for inside all files are its own."""
    path = dataset.absolute()
    path = path.resolve() if path.name in ("", "..") else path
    return path.with_name(f"{path.name}.report.html")


def write_report(dataset: Path, out: Path) -> Path:
    """Write the report on a dataset.

    Args:
        dataset: Its directory.
        out: The HTML file; an older one is replaced.

    Returns:
        The file written.

    Raises:
        MissingDataError: There is no dataset, or its ingestion has not finished.
        CorruptDataError: Its manifest is not what was written.
        ResourceError: The file cannot be written.
    """
    facts = Facts(dataset.absolute(), Manifest.load(dataset))
    page = Page(
        title=f"Dataset {facts.path.name}",
        subtitle=_subtitle(facts),
        cards=_cards(facts),
        sections=[
            *dataset_sections(facts),
            *reject_sections(facts),
            *distribution_sections(facts),
            *element_sections(facts),
            *reference_sections(facts),
            *split_sections(facts),
            *work_sections(facts),
            *provenance_sections(facts),
        ],
        footer=f"Content hash {facts.manifest.content_hash}. The page is complete in itself and loads nothing "
        "from elsewhere.",
    )
    return write_page(page, out)


def _subtitle(facts: Facts) -> str:
    manifest, made = facts.manifest, facts.provenance
    names = [part.name for part in facts.parts]
    parts = listed(names) if len(names) <= 8 else f"{len(names)} datasets"
    text = f"{manifest.structures:,} labelled structures of {parts}, stored as {manifest.format}."
    finished = made.get("finished") or made.get("time")
    if finished:
        text += f" Made {str(finished)[:16].replace('T', ' ')} UTC"
        text += f" by gfm {made['version']}." if made.get("version") else "."
    return f"{text} Content hash {manifest.content_hash}."


def _cards(facts: Facts) -> list[Card]:
    manifest = facts.manifest
    structures = max(1, manifest.structures)
    cards = [
        Card("Structures", f"{manifest.structures:,}", note=_share_of_training(facts)),
        Card("Atoms", f"{manifest.atoms:,}", note=f"{manifest.atoms / structures:,.1f} in a structure"),
    ]
    if facts.elements:
        common = sorted(facts.elements, key=lambda symbol: -facts.elements[symbol])[:4]
        cards.append(Card("Elements", str(len(facts.elements)), note=f"most often {', '.join(common)}"))
    value, _, unit = byte_count(facts.bytes).partition(" ")
    note = f"{facts.bytes / structures:,.0f} bytes a structure, {len(manifest.shards):,} shards"
    cards.append(Card("On disk", value, unit, note))
    seen = manifest.structures + facts.rejected
    cards.append(
        Card("Rejected", f"{facts.rejected:,}", note=f"{percent(facts.rejected, seen)} of {seen:,} records")
    )
    if facts.seconds:
        value, _, unit = duration(facts.seconds).partition(" ")
        note = f"{manifest.structures / facts.seconds:,.0f} structures a second"
        cards.append(Card("Ingestion", value, unit, note))
    return cards


def _share_of_training(facts: Facts) -> str:
    counts = facts.manifest.splits.counts
    return f"{counts['train']:,} for training" if "train" in counts else ""
