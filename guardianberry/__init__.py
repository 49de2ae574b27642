"""GuardianBerry's camera daemon. What stands here is run before any other module of the package, in each process."""

import os

# PyAV's wheels bring a GnuTLS that is not used, but reads its settings from /tmp/vendor/etc/gnutls/config when it is
# loaded. Any user can make a pipe there, and then no import of PyAV would ever end.
os.environ["GNUTLS_SYSTEM_PRIORITY_FILE"] = os.devnull
