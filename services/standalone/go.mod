module github.com/livinguniverse/stoker/services/standalone

go 1.26.0
