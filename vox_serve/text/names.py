"""Abbreviations, days and months that damga's grammars do not read."""

from __future__ import annotations

import calendar


def _table(text: str) -> dict[str, str]:
    return dict(pair.split("=") for pair in text.replace("\n", " ").split("; "))


# abbr2words knows three in four of these, but also reads `The cat sat.` as Saturday.
DOTTED = _table(
    "Ave=Avenue; Ft=Fort; ca=circa; est=established; Gen=General; Sgt=Sergeant; Capt=Captain;"
    " Lt=Lieutenant; Col=Colonel; Rev=Reverend; Gov=Governor; Sen=Senator; Rep=Representative;"
    " Fig=Figure; fig=figure; Vol=Volume; vol=volume; Ch=Chapter; ch=chapter; Sec=Section;"
    " sec=section; Eq=Equation; Apt=Apartment; ext=extension; Ext=Extension; tel=telephone;"
    " Tel=Telephone; ver=version; Ver=Version; pp=pages; p=page; no=number"
)
"""With a full stop, before a name or a number."""
BARE = _table(
    "vs=versus; etc=et cetera; Ltd=Limited; Inc=Incorporated; Blvd=Boulevard; Dept=Department;"
    " dept=department; c/o=care of; b/c=because; w/o=without; cf=compare; viz=namely;"
    " Corp=Corporation; Esq=Esquire; WWI=World War I; WWII=World War II; approx=approximately;"
    " Ph.D=PhD; I.e=That is; E.g=For example"
)
"""With or without a full stop."""
DAYS = dict(zip(calendar.day_abbr, calendar.day_name, strict=True)) | {
    "Tues": "Tuesday",
    "Thurs": "Thursday",
}
MONTHS = dict(zip(calendar.month_abbr[1:], calendar.month_name[1:], strict=True))
POINTS = {"N": "north", "S": "south", "E": "east", "W": "west"}
