"""A patch that creates a symbolic link. Caught: only plain files are read."""

PATCH = """\
diff --git a/config/link.py b/config/link.py
new file mode 120000
--- /dev/null
+++ b/config/link.py
@@ -0,0 +1 @@
+/etc/passwd
\\ No newline at end of file
"""
REFUSED = "not a plain file"
