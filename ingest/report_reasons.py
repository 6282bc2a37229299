"""What each reason of a reject means, in a sentence, for those who did not write the readers."""

__all__ = ["REASONS", "meaning"]

REASONS: dict[str, str] = {
    "atoms-too-close": "Two atoms, periodic images included, are closer than the recipe's least distance.",
    "bad-atomic-number": "An atom is of no element: its number is not from 1 to 118, or its symbol is unknown.",
    "bad-frame": "The rows of a frame are not what its header announces.",
    "bad-header": "The header of a frame cannot be read.",
    "bad-json": "A piece of the file is not JSON.",
    "bad-pickle": "The record is not a pickle of the expected layout, or it is damaged.",
    "bad-shape": "An array has another shape or kind than the layout says.",
    "bad-sidecar": "The line of the side file that belongs to the frame cannot be read.",
    "bad-structure": "The record lacks parts of a structure, or they do not fit together.",
    "bad-virial": "A virial is given for a structure without a volume, so it is no stress.",
    "corrupt-file": "The file cannot be unpacked past this point; what follows is lost.",
    "distance-outlier": "The shortest distance lies outside of the robust limits of its dataset.",
    "duplicate": "The same structure is there already, or the publishers list it as a duplicate.",
    "energy-outlier": "The energy less its linear reference lies outside of the robust limits of its dataset.",
    "energy-too-large": "The energy is beyond 1e9 eV, which no calculation means.",
    "external-link": "A part of the file leads to another file, which is not followed.",
    "flat-cell": "The periodic cell has no volume, so that images of an atom fall together.",
    "force-outlier": "The largest force lies outside of the robust limits of its dataset.",
    "force-too-large": "The largest force on an atom is beyond the recipe's limit.",
    "hostile-pickle": "The pickle asks to run code; it was not run.",
    "left-out": "The recipe's options leave this record out.",
    "missing-frames": "The file ends before all frames that its side file lists.",
    "missing-id": "The record does not say which system and frame it is.",
    "missing-record": "The database announces a record that is not in it.",
    "missing-sidecar": "The side file has no line for the frame, so its energy reference is not known.",
    "no-atoms": "The structure has no atoms.",
    "other-unit": "The file names another unit than the recipe says.",
    "partial-occupancy": "A site is shared by several elements, which is no single structure.",
    "position-too-far": "An atom is beyond 1e5 angstrom of the origin, where float32 is too coarse.",
    "stress-outlier": "The largest stress component lies outside of the robust limits of its dataset.",
    "stress-too-large": "The largest stress component is beyond the recipe's limit.",
    "too-many-atoms": "The structure has more atoms than the recipe allows.",
    "truncated-file": "The file ends in the middle of a record; get it anew.",
    "unreadable": "The record cannot be read from the file: its bytes are damaged.",
    "unreadable-file": "The file, or this stretch of it, cannot be read; it stands for all records in it.",
}

# Reasons made of a kind and the name of a field.
_KINDS = {
    "bad": "The {what} cannot be read, or it is not of the kind or range it should be.",
    "infinite": "The {what} holds an infinite number, or one too large to be stored.",
    "missing": "The {what} is not given.",
    "nan": "The {what} holds NaN: a calculation that failed, or a label that was not computed.",
    "non-finite": "The {what} holds NaN or an infinite number.",
}


def meaning(reason: str) -> str:
    """Return what a reason means; of an unknown one, that the examples have to say it."""
    if reason in REASONS:
        return REASONS[reason]
    for kind, sentence in _KINDS.items():
        if reason.startswith(f"{kind}-") and len(reason) > len(kind) + 1:
            return sentence.format(what=reason[len(kind) + 1 :].replace("-", " ").replace("_", " "))
    return "A reason of this reader's own; the examples say what was found."
