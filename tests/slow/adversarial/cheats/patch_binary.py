"""A patch with a binary hunk: the bytes 0 to 5. Caught: a judge can read only source."""

PATCH = """\
diff --git a/config/new.py b/config/new.py
new file mode 100644
index 0000000000000000000000000000000000000000..d43e6e83345438787f245d7976e872ebf6f9eb46
GIT binary patch
literal 6
NcmZQzWMXDv1pojk01yBG

literal 0
HcmV?d00001

"""
REFUSED = "not Python source|not plain text"
