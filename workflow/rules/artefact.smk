# Rows to tables and figures, each beside the paper's numbers.
PAPER = ["results/paper/values.csv", "results/paper/claims.csv"]


def rows_of(wildcards):
    """The rows files that an artefact reads."""
    return [
        str(path) for path in PRESET.rows_for(ARTEFACTS[wildcards.artefact].needs)[0]
    ]


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
            name for name, about in ARTEFACTS.items() if about.kind == "figure"
        ),
    params:
        source=lambda wildcards: files_digest(
            (ROOT / "seerbench/artefacts").glob("*.py")
        ),
    shell:
        "{STEP} draw {wildcards.artefact} --run {RUN} --out {FIGURES} > {log} 2>&1"


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
            name for name, about in ARTEFACTS.items() if about.kind == "table"
        ),
