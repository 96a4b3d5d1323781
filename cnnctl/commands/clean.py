"""``cnnctl data clean``: delete what is kept in the user's cache folder and can be made again."""

from __future__ import annotations

from omegaconf import DictConfig

from cnnctl.commands.info import scaled
from cnnctl.data.image_file import printable
from cnnctl.data.kept import KINDS, entries, forget
from cnnctl.engine.console import Console
from cnnctl.errors import Exit, UserError, nearest
from cnnctl.user_cache import user_cache


def run(options: DictConfig) -> int:
    """List it with its sizes, delete it and say how much that freed.

    Args:
        options: ``only`` and ``dry``, as conf/clean.yaml has them.

    Raises:
        UserError: there is no such kind, or a file cannot be deleted (code 5); all others are.
    """
    if type(options.dry) is not bool:
        raise UserError(f"must be true or false, not {options.dry!r}", field="dry")
    if options.only is not None and options.only not in KINDS:
        advice = nearest(str(options.only), KINDS)
        raise UserError(f'nothing called "{options.only}" is kept', field="only", advice=advice)
    console, folder = Console(), printable(user_cache(""))
    found = entries([options.only] if options.only else KINDS)
    if not found:
        console.say(f"nothing is kept in {folder}")
        return Exit.DONE
    rows, freed, left, faults = [], 0, 0, []
    for entry in found:
        try:
            gone = not options.dry and forget(entry)
            state = "deleted" if gone else "" if options.dry else "left: it is being made"
        except OSError as error:
            gone, state = False, f"not deleted: {error.strerror}"
            faults.append((entry.paths[0], error))
        freed += entry.size * gone
        left += not gone
        rows.append((KINDS[entry.kind], entry.of, f"{scaled(entry.size)}B", state))
    console.table(f"kept in {folder}", ("what", "of", "size", ""), rows)
    if options.dry:
        total = sum(entry.size for entry in found)
        console.say(f"{scaled(total)}B; without dry=true they are deleted")
    else:
        console.say(f"freed: {scaled(freed)}B{f'; left: {left}' if left else ''}")
    if faults:
        path, error = faults[0]
        problem = f"cannot be deleted: {error.strerror}"
        raise UserError(problem, file=printable(path), code=Exit.MACHINE)
    return Exit.DONE
