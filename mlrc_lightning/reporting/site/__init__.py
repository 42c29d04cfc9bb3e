"""The report: a static site of all stored results that opens from disk, without network, torch or a server.

`contents` finds what there is to show; `charts` draws the small plots as SVG; the `…_pages` modules write HTML;
`comparisons` tests every two losses; `site` puts it all into `outputs/report/`.
"""
