# Draws tables and figures from rows, each beside the paper's numbers.
PAPER = [ROOT / "results/paper" / name for name in ("values.csv", "claims.csv")]


rule draw_figure:
    input:
        rows=rows_of,
        paper=PAPER,
    output:
        report(
            f"{FIGURES}/{{artefact}}.svg",
            caption="../report/artefact.rst",
            category="Figures",
            labels={"artefact": "{artefact}", "run": PRESET.name},
        ),
        f"{FIGURES}/{{artefact}}.png",
        f"{FIGURES}/{{artefact}}.csv",
    log:
        f"{LOGS}/draw-{{artefact}}.log",
    wildcard_constraints:
        artefact="|".join(
            name for name, artefact in ARTEFACTS.items() if artefact.kind == "figure"
        ),
    params:
        run=DRAWN,
        out=subpath(output[0], parent=True),
        source=lambda wildcards: drawing_code(wildcards.artefact),
    shell:
        "seerbench draw {wildcards.artefact} --run {params.run} --out {params.out} > {log} 2>&1"


use rule draw_figure as draw_table with:
    output:
        f"{FIGURES}/{{artefact}}.csv",
        report(
            f"{FIGURES}/{{artefact}}.md",
            caption="../report/artefact.rst",
            category="Tables",
            labels={"artefact": "{artefact}", "run": PRESET.name},
        ),
        f"{FIGURES}/{{artefact}}.tex",
    wildcard_constraints:
        artefact="|".join(
            name for name, artefact in ARTEFACTS.items() if artefact.kind == "table"
        ),


rule write_report:
    input:
        rows=rows_of_all,
        paper=PAPER,
    output:
        f"{FIGURES}/report.html",
    log:
        f"{LOGS}/report.log",
    params:
        run=DRAWN,
        source=files_digest(
            [
                *(ROOT / "seerbench/artefacts").glob("*.py"),
                *(ROOT / "seerbench/report").glob("*.py"),
            ]
        ),
    shell:
        "seerbench report --run {params.run} --out {output} > {log} 2>&1"


rule execute_notebook:
    input:
        source=ROOT / "notebooks/{notebook}.py",
        rows=rows_of_all,
        published=sorted((ROOT / "results/published").glob("*/MANIFEST.json")),
        paper=PAPER,
    output:
        f"{FIGURES}/{{notebook}}.ipynb",
        f"{FIGURES}/{{notebook}}.html",
    log:
        f"{LOGS}/notebook-{{notebook}}.log",
    wildcard_constraints:
        notebook="|".join(source.stem for source in (ROOT / "notebooks").glob("*.py")),
    params:
        run=DRAWN,
        out=subpath(output[0], parent=True),
        source=files_digest(
            [
                *(ROOT / "seerbench/report").glob("*.py"),
                *(ROOT / "seerbench/artefacts").glob("*.py"),
            ]
        ),
    shell:
        "seerbench notebook {input.source} --run {params.run} --out {params.out} > {log} 2>&1"
