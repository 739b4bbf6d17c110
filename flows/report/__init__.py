"""What people look at: figures of one stage (``figures.py``) and the page of one realignment (``page.py``)."""
