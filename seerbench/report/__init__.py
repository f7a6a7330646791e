"""The report: verdicts on the paper's claims, the pages that show them, notebooks, and advice from rows."""
