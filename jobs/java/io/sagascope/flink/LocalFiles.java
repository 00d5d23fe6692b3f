package io.sagascope.flink;

import org.apache.hadoop.fs.LocalFileSystem;
import org.apache.hadoop.fs.Path;
import org.apache.hadoop.fs.RawLocalFileSystem;
import org.apache.hadoop.fs.permission.FsPermission;

/**
 * Hadoop's local file system without what costs a commit most: a process {@code chmod} for every file, and a {@code .crc}
 * file beside it, which gets one too. Parquet and Avro have checksums of their own, and files get the umask's permissions.
 */
public final class LocalFiles extends LocalFileSystem {
    public LocalFiles() {
        super(new WithoutPermissions());
        setWriteChecksum(false);
        setVerifyChecksum(false);
    }

    private static final class WithoutPermissions extends RawLocalFileSystem {
        @Override
        public void setPermission(Path path, FsPermission permission) {}
    }
}
