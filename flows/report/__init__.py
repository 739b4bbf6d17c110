"""Reports: figures of one stage (``figures.py``), the page of one run (``page.py``), the page of a study (``study.py``)."""
