"""Judge every layer against the targets and write the report."""

from pathlib import Path

from stages.report.figures import figures
from stages.report.findings import Folders, read_findings
from stages.report.latents import site
from stages.report.page import render
from stages.report.scorecard import failures, scorecard, summary
from strata.run.door import BadInput
from strata.run.files import write_bytes, write_json, write_text, write_texts
from strata.run.progress import each


def main(
    tune: str,
    train: str,
    controls: str,
    stability: str,
    interpret: str,
    explain: str,
    cluster: str,
    merge: str,
    invert: str,
    steer: str,
    evaluate: str,
    latents: str,
    explained: str,
    clusters: str,
    labels: str,
    card_file: str,
    summary_file: str,
    page: str,
    plots: str,
    pages: str,
) -> None:
    """TUNE to EVALUATE, the stages' folders in reports/, with LATENTS, EXPLAINED and CLUSTERS in data/, and LABELS, the
    names that people gave -> the scorecard in CARD_FILE, every number in SUMMARY_FILE, the report in PAGE, its pictures
    in PLOTS, the latents' pages in PAGES.

    Example: dvc repro report
    """
    findings = read_findings(
        Folders(
            tune=Path(tune),
            train=Path(train),
            controls=Path(controls),
            stability=Path(stability),
            interpret=Path(interpret),
            explain=Path(explain),
            cluster=Path(cluster),
            merge=Path(merge),
            invert=Path(invert),
            steer_eval=Path(steer),
            evaluate=Path(evaluate),
            latents=Path(latents),
            explained=Path(explained),
            clusters=Path(clusters),
            labels=Path(labels),
        )
    )

    card = scorecard(findings.results, findings.targets, findings.twins, findings.again)
    pictures = figures(findings)

    for name, png in pictures.items():
        write_bytes(Path(plots) / f"{name}.png", png)
    write_text(Path(page), render(findings, card, pictures))
    site_pages = each(site(findings.latents, findings.causes), "write", "pages")
    write_texts((Path(pages) / name, html) for name, html in site_pages)
    write_json(Path(summary_file), summary(findings.results, card, findings.summarised()))
    write_json(Path(card_file), card)

    # Refused only now, so that the report that says why is there.
    if findings.targets.enforce and (failed := failures(card)):
        raise BadInput(f"{len(failed)} targets fail: {'; '.join(failed)}")
